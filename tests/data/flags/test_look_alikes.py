import numpy as np

from twohop.data.flags._look_alikes import THUMB_PX, close_pairs, look_alikes, same_in_two_sources


def flat(*levels):
    return np.stack([np.full((THUMB_PX, THUMB_PX, 3), float(x)) for x in levels])


def test_distance_is_the_root_mean_square_in_levels():
    assert close_pairs(flat(0, 10, 100), 10.5) == [(0, 1)]
    assert close_pairs(flat(0, 10, 100), 9.5) == []


def test_measured_pairs_do_not_need_the_known_list():
    # not in the list of known groups, found by their thumbnails
    assert look_alikes(["IT", "MX", "FR"]) == {"IT": ("MX",), "MX": ("IT",), "FR": ()}


def test_known_pairs_are_found_whatever_the_threshold():
    assert look_alikes(["ID", "MC", "BR"], threshold=0.0) == {"ID": ("MC",), "MC": ("ID",), "BR": ()}


def test_square_flag_is_the_same_in_two_sources_only_when_sources_differ():
    assert same_in_two_sources("CH", {"1x1": "a", "noto_original": "b"})
    assert not same_in_two_sources("CH", {"1x1": "a", "noto_original": "a"})
    assert not same_in_two_sources("FR", {"1x1": "a", "noto_original": "b"})
