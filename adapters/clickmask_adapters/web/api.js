// The server's public API, with the token if it wants one, and failures as sentences.

const TOKEN = "clickmask-token";
const TRIES_WHEN_BUSY = 6;

export class Failure extends Error {
  /** `status` is 0 if there was no answer. */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const SENTENCES = {
  401: "This server wants its token.",
  403: "The server refuses this page. Open it by the address that `clickmask serve` prints.",
  404: "This server does not know that address. Is it an older clickmask?",
  413: "This photo is larger than the server accepts.",
  422: "The server does not understand this request.",
  503: "The server is busy. Try again in a moment.",
};

async function failure(response) {
  let said = "";
  try {
    const body = await response.json();
    said = typeof body.error === "string" ? body.error : "";
  } catch (error) {
    if (error.name === "AbortError") throw error; // anything else: a body that is not JSON says nothing
  }
  if (said && !/[.!?]$/.test(said)) said += ".";
  said = said && said[0].toUpperCase() + said.slice(1);
  const sentence = SENTENCES[response.status] ?? `The server failed (${response.status}). Its log says why.`;
  return new Failure(said || sentence, response.status);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

let login = null; // one dialog for all requests that wait for it

function token(askToken) {
  login ??= askToken().finally(() => {
    login = null;
  });
  return login;
}

/**
 * JSON of `path`; with `body` a POST. Throws Failure, or the AbortError of `signal`.
 *
 * A 401 asks `askToken()` (a promise of the token, or of null to give up), a 503 is tried again
 * after the seconds that the server names, each time told to `onWait(seconds)`.
 */
export async function call(path, { body, signal, askToken, onWait } = {}) {
  for (let tries = 1; ; tries++) {
    const sent = sessionStorage.getItem(TOKEN);
    const headers = { Accept: "application/json" };
    if (sent) headers.Authorization = `Token ${sent}`;
    if (body) headers["Content-Type"] = "application/json";
    const request = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
    if (body) request.body = JSON.stringify(body);
    let response;
    try {
      response = await fetch(path, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer. Is it still running?", 0);
    }
    if (response.ok) return response.json();
    if (response.status === 401 && askToken) {
      // Another request may have brought the token while this one was under way.
      const given = sessionStorage.getItem(TOKEN) !== sent || (await token(askToken));
      if (typeof given === "string") sessionStorage.setItem(TOKEN, given);
      signal?.throwIfAborted();
      if (given) continue;
    }
    if (response.status === 503 && response.headers.has("Retry-After") && tries < TRIES_WHEN_BUSY) {
      const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), 30);
      onWait?.(seconds);
      await pause(seconds, signal);
      continue;
    }
    throw await failure(response);
  }
}

/** Asks for the token in the page's dialog; null if the person cancels. */
export function tokenDialog(dialog, form, input, cancel) {
  return () =>
    new Promise((resolve) => {
      let answer = null;
      input.value = "";
      form.onsubmit = (event) => {
        event.preventDefault();
        answer = input.value.trim();
        dialog.close();
      };
      cancel.onclick = () => dialog.close();
      dialog.onclose = () => resolve(answer || null);
      dialog.showModal();
    });
}
