"""Training compared with PyTorch: ours runs, and a missing PyTorch is reported."""

from __future__ import annotations

from gpudarknet.bench import train


def test_a_small_network(monkeypatch):
    monkeypatch.setattr(train, "ENGINES", ("gpudarknet",))
    monkeypatch.setattr(train, "ROUNDS", 1)
    lines = []
    ratio = train.compare("digits", 2, 64, 32, 0.01, lines.append)
    assert ratio is None
    assert lines and all(
        "digits 64 x 32, batch 2: gpudarknet, threads: " in text and "images/s" in text for text in lines
    )
