"""Stand-ins, drawn pictures and fakes that the tests share."""

from pathlib import Path

CONTRACTS = Path(__file__).parent.parent / "contracts"  # what the labeling tools really send, recorded
