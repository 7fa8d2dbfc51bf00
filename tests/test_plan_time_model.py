"""The time model of plans on a GPU: against numbers worked out by hand, and properties that any card has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpudarknet.errors import DataError
from gpudarknet.plan.cuda.time_model import (
    CARDS,
    ITEMSIZE,
    LAUNCH,
    RAMP,
    TILE_RAMP,
    Card,
    Cost,
    Gemm,
    card_of_device,
    find_card,
    gemm_seconds,
    memory_seconds,
    seconds,
)

# 10 SMs of 1 TFLOP/s each, 1 GB/s of DRAM and 10 GB/s of L2 for up to 1 MB
SIMPLE = Card("simple", "Simple", 10, 1e9, 1_250_000, 1e10, {"fp16": 1e13, "tf32": 5e12, "fp32": 1e12})
FAST_MEMORY = replace(SIMPLE, dram_bandwidth=1e18, l2_bandwidth=1e18)


def test_a_kernel_is_limited_by_memory_or_arithmetic():
    assert seconds(Cost(600_000, 400_000), SIMPLE, "fp32") == pytest.approx(LAUNCH + RAMP + 1e-4)  # L2
    assert seconds(Cost(600_000, 400_001), SIMPLE, "fp32") == pytest.approx(LAUNCH + RAMP + 1.000001e-3 / 0.85)  # DRAM
    assert seconds(Cost(8, 8, kernel_flops=3e9), SIMPLE, "fp16") == pytest.approx(LAUNCH + RAMP + 1e-2)
    assert seconds(Cost(), SIMPLE, "fp32") == LAUNCH + RAMP


def test_a_gemm_runs_in_waves_of_tiles():
    """11 tiles on 10 SMs are two waves; a tile of 128 x 128 x 350 is 11,468,800 operations at 0.7 TFLOP/s. Two share a ramp."""
    tile = 11_468_800 / 0.7e12
    for M, waves, ramps in ((1, 1, 1), (10 * 128, 1, 1), (10 * 128 + 1, 2, 1), (20 * 128, 2, 1), (20 * 128 + 1, 3, 2)):
        got = gemm_seconds(FAST_MEMORY, "fp16", M, 128, 350, (128, 128))
        assert got == pytest.approx(LAUNCH + waves * tile + ramps * TILE_RAMP)
    got = gemm_seconds(FAST_MEMORY, "fp16", 128, 128, 350, (128, 128), count=11)
    assert got == pytest.approx(LAUNCH + 2 * tile + TILE_RAMP)
    large = 2 * 128 * 256 * 350 / 0.75e12 + TILE_RAMP
    assert gemm_seconds(FAST_MEMORY, "fp16", 11 * 128, 256, 350, (128, 256)) == pytest.approx(LAUNCH + 2 * large)


def test_small_tiles_and_lower_precisions_are_slower():
    def compute(precision, tile):
        return gemm_seconds(FAST_MEMORY, precision, 128 * 1000, 256, 1000, tile)

    assert compute("fp16", (128, 256)) < compute("fp16", (128, 128)) < compute("fp16", (64, 128))
    assert compute("fp16", (64, 128)) == compute("fp16", (128, 64)) < compute("fp16", (64, 64))
    assert compute("fp16", (64, 64)) < compute("fp16", (32, 32))
    assert compute("fp16", (128, 128)) < compute("tf32", (128, 128)) < compute("fp32", (128, 128))


def test_a_split_gemm_adds_its_parts_in_a_second_launch():
    """Four parts of K = 1000 are a wave of 4 tiles; 4 x 128 x 128 sums of 4 bytes are written and read."""
    card = replace(FAST_MEMORY, l2_bandwidth=1e10)
    got = gemm_seconds(card, "fp16", 128, 128, 4000, (128, 128), split=4, bytes_moved=0)
    loaded = 4 * 256 * 1000 * 2 / 1e10  # seconds, longer than computing
    assert got == pytest.approx(LAUNCH + loaded + LAUNCH + RAMP + 2 * 4 * 4 * 128 * 128 / 1e10)


def test_bytes_limit_a_gemm():
    """2 x 100 x 100,000 + 100 x 100 elements of fp32 in DRAM; an implicit GEMM that reads fewer bytes of maps is faster."""
    card = replace(SIMPLE, flops=dict.fromkeys(ITEMSIZE, 1e20), l2_bandwidth=1e18)
    got = gemm_seconds(card, "fp32", 100, 100, 100_000, (128, 128))
    assert got == pytest.approx(LAUNCH + 80_040_000 / 0.85e9)
    fewer = gemm_seconds(card, "fp32", 100, 100, 100_000, (128, 128), bytes_moved=8_500_000)
    assert fewer == pytest.approx(LAUNCH + 0.01)


def test_cublas_takes_the_fastest_tile_and_split():
    """M = 169 has few tiles: K is split. With many tiles it is not, and the largest tile is best."""
    card = find_card("H100")
    few, many = Gemm(169, 512, 4608), Gemm(169 * 64 * 16, 512, 4608)
    cost = Cost(2 * (169 * 4608 + 512 * 4608), 2 * 169 * 512, gemm=few)
    unsplit = min(gemm_seconds(card, "fp16", few.M, few.N, few.K, (m, n)) for m in (64, 128) for n in (64, 128))
    assert seconds(cost, card, "fp16") < unsplit
    largest = gemm_seconds(card, "fp16", many.M, many.N, many.K, (128, 256))
    moved = 2 * (many.M * (4608 + 512) + 512 * 4608)
    assert seconds(Cost(moved, 0, gemm=many), card, "fp16") == pytest.approx(largest)


def test_our_own_gemm_has_its_tile_and_split():
    card = find_card("A100")
    cost = Cost(1000, 1000, gemm=Gemm(1000, 512, 1152, tile=(64, 128), split=2))
    want = gemm_seconds(card, "fp16", 1000, 512, 1152, (64, 128), 2, bytes_moved=2000, mma_sync=True)
    assert seconds(cost, card, "fp16") == want


def test_mma_sync_is_slower_only_on_hopper():
    def times(name, precision):
        sizes = (find_card(name), precision, 10_000, 1024, 4608, (128, 128))
        return gemm_seconds(*sizes), gemm_seconds(*sizes, mma_sync=True)

    library, own = times("H100", "fp16")
    assert 1.5 < own / library < 2  # twice the loads from L2, too: blocks do not share them
    for name, precision in (("A100", "fp16"), ("RTX 4090", "tf32")):
        library, own = times(name, precision)
        assert own == library


def test_costs_add_up():
    cost = Cost(3, 4, 5.0, Gemm(2, 3, 4, 5))
    assert cost.bytes_moved == 7 and cost.flops == 5 + 2 * 2 * 3 * 4 * 5
    assert [str(Gemm(2, 3, 4)), str(Gemm(2, 3, 4, 16))] == ["gemm 2 x 3 x 4", "16 x gemm 2 x 3 x 4"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_plausible(card):
    """Tensor cores do whole multiples of 64 multiply-adds per SM and cycle, at 0.8 to 3 GHz; larger memories are slower."""
    assert card.flops["fp16"] > card.flops["tf32"] >= card.flops["fp32"]
    assert any(0.8e9 < card.flops["fp32"] / (2 * card.sms * units) < 3e9 for units in (64, 128))
    assert card.l2_bandwidth > 1.04 * card.dram_bandwidth
    assert memory_seconds(card, card.l2_bytes / 2) < memory_seconds(card, card.l2_bytes)
    assert find_card(card.name) is card is find_card(card.name.lower()) is card_of_device(card.device)


def test_cards_are_found_by_a_part_of_their_name():
    assert find_card("h100").name == "H100 SXM" and find_card("4090").name == "RTX 4090"
    assert find_card("L4").name == "L4" and card_of_device("NVIDIA L40S").name == "L40S"
    assert card_of_device("Tesla T4").name == "T4" and card_of_device("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert card_of_device("NVIDIA GeForce RTX 3060") is None and card_of_device("NVIDIA GeForce RTX 4090 D") is None
    for name in ("", "3060"):
        with pytest.raises(DataError) as e:
            find_card(name)
        assert str(e.value).startswith(f"unknown card '{name}'; choose one of H100 SXM, ")
