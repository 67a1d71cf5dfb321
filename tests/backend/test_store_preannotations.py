"""What models drew, as the store keeps it."""

from __future__ import annotations

import numpy as np
import pytest

from clickmask.masks import rle_to_mask
from clickmask.store import Store
from clickmask.types import Prediction, Prompt
from fakes import disc_mask


def test_what_models_drew_is_kept_apart_from_what_clicks_were_answered_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (60, 80)
    prediction = Prediction(disc_mask(size, [(20.0, 30.5)]), 0.75, "unet")
    store.remember_proposal("clicked", "d", Prompt(((1.0, 2.0),)), prediction)
    monkeypatch.setattr(store, "_kept_preannotated", 4)
    store.remember_preannotated(
        "d", size, "unet:a", [("1", "cell", prediction), ("2", "nucleus", prediction)]
    )
    store.remember_preannotated("e", size, "unet:a", [])
    store.remember_preannotated("d", size, "unet:a", [("3", "cell", prediction), ("4", "cell", prediction)])
    (nothing,) = store.preannotated("e")
    assert (nothing.label, rle_to_mask(nothing.rle).any()) == ("", False)
    kept = store.preannotated("d")
    assert [each.id for each in kept] == ["2", "3", "4"]
    assert [each.label for each in kept] == ["nucleus", "cell", "cell"]
    assert kept[0].batch != kept[1].batch == kept[2].batch
    assert (kept[0].annotator, kept[0].score) == ("unet:a", 0.75)
    np.testing.assert_array_equal(rle_to_mask(kept[0].rle), prediction.mask)
    assert [proposal.id for proposal in store.proposals("d")] == ["clicked"]
