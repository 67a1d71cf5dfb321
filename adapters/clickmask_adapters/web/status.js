// The page at /status: what the server holds and what went wrong last, asked for again and again.

import { call, tokenDialog } from "./api.js";

const EVERY = 3000; // ms

const part = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const askToken = tokenDialog(part("login"), part("login-form"), part("token"), part("login-cancel"));

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  return `${number.format(Number((bytes / 1024 ** power).toPrecision(3)))} ${" KMGT"[power]}iB`;
}

function count(n, one, many) {
  return `${number.format(n)} ${n === 1 ? one : many}`;
}

function duration(seconds) {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor((seconds % 86400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days) return `${count(days, "day", "days")} ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

/** Who asked for what, as far as the path tells. */
function asked({ method, path }) {
  const known = {
    "/predict": "Label Studio asked for a mask",
    "/setup": "Label Studio set the project up",
    "/webhook": "Label Studio sent an event",
    "/versions": "Label Studio asked for model versions",
    "/v1/proposals": "The page or a program asked for a mask",
    "/v1/images": "The page or a program sent a photo",
  }[path];
  if (known) return `${known} (${method} ${path})`;
  return path.startsWith("/api/") ? `CVAT asked for ${method} ${path}` : `${method} ${path}`;
}

function item(title, meta, kind = "") {
  const element = document.createElement("li");
  const first = Object.assign(document.createElement("span"), { textContent: title, className: kind });
  element.append(first);
  if (meta) element.append(Object.assign(document.createElement("span"), { textContent: meta, className: "meta" }));
  return element;
}

function sentence(text) {
  const start = text ? text[0].toUpperCase() + text.slice(1) : "No reason was given";
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

/** What the server counts, in words for people. */
const TURNED_AWAY = {
  busy: "requests for which a queue was full",
  foreign_origin: "posts from pages of another origin",
  idle_closed: "connections without a request, closed for new ones",
  image_refused: "images that may not be read",
  no_secret: "requests without the secret",
  not_accepted: "times that the system had no file descriptor for a connection",
  not_json: "requests that were not JSON",
  not_this_machine: "requests from other machines, while there is no secret",
  overloaded: "requests that would have waited too long",
  silent_closed: "connections that said nothing more",
  slowed_down: "wrong secrets, too many at a time",
  too_large: "requests or images that were too large",
  turned_away: "connections, while a request was at work on each of the others",
  unfinished: "requests that did not come to their end",
  unfinished_closed: "connections with half a request, closed for new ones",
  unknown_host: "requests to a host name that is not this server’s",
  unread_closed: "answers that nobody read",
  wrong_secret: "requests with a wrong secret",
  wrong_signature: "webhooks with a wrong signature",
};

function show(status, segmenters) {
  const { version, segmenter, uptime_s, cache, queue, inbox, intake, troubles, turned_away, errors } = status;
  part("version").textContent = `clickmask ${version}`;
  part("uptime").textContent = `${segmenter} by default, up for ${duration(uptime_s)}`;
  const asks = cache.hits + cache.misses;
  part("cache").textContent = `${size(cache.bytes)} of ${size(cache.capacity)}`;
  part("cache-meter").max = cache.capacity;
  part("cache-meter").value = cache.bytes;
  part("cache-note").textContent =
    `${count(cache.entries, "photo", "photos")}` +
    (asks ? `; ${number.format(cache.hits)} of ${count(asks, "request", "requests")} found theirs there` : "") +
    (cache.disk
      ? `. On disk: ${count(cache.disk.entries, "photo", "photos")}, ` +
        `${size(cache.disk.bytes)} of ${size(cache.disk.capacity)}` +
        (cache.disk.evicted ? `, ${number.format(cache.disk.evicted)} went to leave room on it` : "")
      : "");
  part("queue").textContent = queue.waiting ? count(queue.waiting, "photo", "photos") : "none";
  part("queue-meter").max = queue.capacity;
  part("queue-meter").value = queue.waiting;
  part("queue-note").textContent = `${count(queue.capacity, "place", "places")}; when all are taken, requests are answered “busy”`;
  const needed = [
    ...troubles.now.map((text) => item(sentence(text), "now", "trouble")),
    ...troubles.damaged.map((each) => item(sentence(each.sentence), moment(each.at), "trouble")),
  ];
  part("troubles").replaceChildren(...needed);
  part("troubles-part").hidden = !needed.length;
  part("inbox").textContent = inbox === null ? "unknown" : number.format(inbox);
  part("inbox-note").textContent = intake
    ? `${intake.waiting ? number.format(intake.waiting) : "none"} still to be read, ` +
      `${intake.set_aside ? number.format(intake.set_aside) : "none"} set aside; ` +
      `${count(intake.kept_images.images, "labelled photo", "labelled photos")} kept, ` +
      `${size(intake.kept_images.bytes)} of ${size(intake.kept_images.capacity)}` +
      (intake.kept_images.refused ? `, ${number.format(intake.kept_images.refused)} found no room` : "")
    : "sent by the labeling tools";
  const aside = intake ? intake.newest_set_aside : [];
  part("aside").replaceChildren(
    ...aside.map((event) =>
      item(
        sentence(event.reason),
        `event ${event.event} of ${event.tool.replace("_", " ")} · ${moment(event.at)} · ` +
          (event.retry_at ? `tried ${count(event.attempts, "time", "times")}, again ${moment(event.retry_at)}` : "given up until a restart"),
        "trouble",
      ),
    ),
  );
  part("aside-part").hidden = !aside.length;
  part("segmenters").replaceChildren(
    ...segmenters.segmenters.map(({ name, ready, reason }) =>
      item(
        name === segmenters.default ? `${name} (default)` : name,
        ready ? "" : sentence(reason || "not ready"),
        ready ? "ready" : "not-ready",
      ),
    ),
  );
  const turnedAway = Object.entries(turned_away ?? {});
  part("turned-away").replaceChildren(
    ...turnedAway.map(([kind, times]) => item(`${number.format(times)} ${TURNED_AWAY[kind] ?? kind.replaceAll("_", " ")}`, "")),
  );
  part("turned-away-part").hidden = !turnedAway.length;
  const failures = errors.map((failure) =>
    item(
      sentence(failure.error),
      `${new Date(failure.at).toLocaleString()} · ${asked(failure)} · answered ${failure.status}`,
      failure.status >= 500 ? "trouble" : "",
    ),
  );
  part("errors").replaceChildren(...(failures.length ? failures : [item("Nothing, since the server was started.", "")]));
  for (const id of ["cards", "segmenters-part", "errors-part"]) part(id).hidden = false;
}

function moment(seconds) {
  return new Date(seconds * 1000).toLocaleString();
}

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  try {
    const [status, segmenters] = await Promise.all([
      call("/v1/status", { askToken }),
      call("/v1/segmenters", { askToken }),
    ]);
    show(status, segmenters);
    part("fresh").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    part("fresh").textContent = `${error.message} Asking again …`;
    if (error.status === 401) return; // the person did not give the token
  }
  if (!document.hidden) timer = setTimeout(refresh, EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
