"""What programs see of locks, as tables of steps and outcomes (the language: `tests.helpers.lock_script`)."""

from __future__ import annotations

import pytest

from tests.helpers.lock_script import LockScript

Steps = list[tuple[str, str]]

EXCLUSION: dict[str, Steps] = {
    "readers_share_and_a_writer_is_refused": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b try f R 5-14 #2", "ok 2"),
        ("2c try f W 9 #3", "EAGAIN 3"),
    ],
    "owners_of_equal_number_in_two_sessions_are_two_owners": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2a try f W 9 #2", "EAGAIN 2"),
    ],
    "an_owner_never_conflicts_with_itself": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("1a try f W 5-14 fd=2 #2", "ok 2"),
    ],
    "touching_ranges_do_not_conflict": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("1b try f W 10- #2", "ok 2"),
        ("1c try f W 9-10 #3", "EAGAIN 3"),
    ],
    "files_are_independent": [("1a try f W 0- #1", "ok 1"), ("1b try g W 0- #2", "ok 2")],
    "posix_and_flock_ignore_each_other": [
        ("1a try f W 0- #1", "ok 1"),
        ("1b tryflock f W #2", "ok 2"),
        ("1c try f R 0 #3", "EAGAIN 3"),
        ("1c tryflock f R #4", "EAGAIN 4"),
    ],
    "flock_covers_the_whole_file": [
        ("1a tryflock f W #1", "ok 1"),
        ("2b tryflock f R #2", "EAGAIN 2"),
        ("1a tryflock f U #3", "ok 3"),
        ("2b tryflock f R #4", "ok 4"),
        ("2c tryflock f R #5", "ok 5"),
    ],
    "unlocking_what_is_not_held_succeeds": [("1a try f U 0- #1", "ok 1")],
    "a_range_outside_the_offsets_is_invalid": [("1a try f W 9-3 #1", "EINVAL 1")],
}

GETLK: dict[str, Steps] = {
    "names_holder_mode_and_range": [
        ("1a try f R 10-19 #1", "ok 1"),
        ("2b test f W 0-", "R 10-19 pid 101"),
        ("2b test f R 0-", "free"),
        ("1a test f W 0-", "free"),
    ],
    "names_the_first_conflict_in_the_range": [
        ("1a try f W 40-49 #1", "ok 1"),
        ("1b try f W 20-29 #2", "ok 2"),
        ("2c test f R 0-", "W 20-29 pid 102"),
        ("2c test f R 30-", "W 40-49 pid 101"),
        ("2c test f R 30-39", "free"),
    ],
    "joins_what_was_locked_through_two_open_files": [
        ("1a try f W 0-9 fd=1 #1", "ok 1"),
        ("1a try f W 10- fd=2 #2", "ok 2"),
        ("1b test f R 5", "W 0- pid 101"),
    ],
    "names_no_mere_waiter": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("1b wait f W 0-9 #2", ""),
        ("1c test f R 0-9", "free"),
    ],
    "unlock_finds_ones_own": [
        ("1a try f R 5-9 #1", "ok 1"),
        ("1a test f U 0-", "R 5-9 pid 101"),
        ("1b test f U 0-", "free"),
    ],
}

ENDINGS: dict[str, Steps] = {
    "flush_drops_all_posix_locks_of_the_owner_through_whatever_descriptor": [
        ("1a try f W 0-9 fd=1 #1", "ok 1"),
        ("1a try f W 20-29 fd=2 #2", "ok 2"),
        ("1b try f W 40 #3", "ok 3"),
        ("2c wait f W 0-29 #4", ""),
        ("1a flush f", "ok 4"),
        ("2c test f W 40", "W 40-40 pid 102"),
    ],
    "flush_leaves_flock_ofd_locks_and_other_files": [
        ("1x try f W 0-9 ofd fd=1 #1", "ok 1"),
        ("1a tryflock f W fd=1 #2", "ok 2"),
        ("1a try g W 0 fd=7 #3", "ok 3"),
        ("1a flush f", ""),
        ("2b try f R 0 #4", "EAGAIN 4"),
        ("2b tryflock f R #5", "EAGAIN 5"),
        ("2b try g R 0 #6", "EAGAIN 6"),
    ],
    "flush_leaves_the_owners_other_threads_waiting": [
        ("2b try f W 0 #1", "ok 1"),
        ("1a wait f W 0 #2", ""),
        ("1a flush f", ""),
        ("2b flush f", "ok 2"),
    ],
    "release_drops_what_was_locked_through_that_open_file_only": [
        ("1x try f W 0-9 ofd fd=1 #1", "ok 1"),
        ("1y try f W 20-29 ofd fd=2 #2", "ok 2"),
        ("1x tryflock f R fd=1 #3", "ok 3"),
        ("2b wait f W 0-9 #4", ""),
        ("2b waitflock f W #5", ""),
        ("1 release f fd=1", "ok 4; ok 5"),
        ("2c try f W 20 #6", "EAGAIN 6"),
    ],
    "release_is_of_one_session": [
        ("1a try f W 0 fd=1 #1", "ok 1"),
        ("2 release f fd=1", ""),
        ("2b try f W 0 #2", "EAGAIN 2"),
    ],
    "release_keeps_what_the_owner_took_over_through_another_open_file": [
        ("1a try f W 0-9 fd=1 #1", "ok 1"),
        ("1a try f W 4-5 fd=2 #2", "ok 2"),
        ("1 release f fd=1", ""),
        ("2b test f W 0-", "W 4-5 pid 101"),
    ],
    "release_with_owner_drops_its_flock_through_whatever_open_file": [
        ("1x tryflock f W fd=1 #1", "ok 1"),
        ("2y waitflock f W #2", ""),
        ("1x release f fd=9", "ok 2"),
    ],
    "release_refuses_who_waits_through_the_open_file": [
        ("2b try f W 0 #1", "ok 1"),
        ("1x wait f W 0 fd=5 #2", ""),
        ("1y wait f R 0 fd=6 #3", ""),
        ("1 release f fd=5", "EBADF 2"),
        ("2b flush f", "ok 3"),
    ],
    "a_session_ends_with_all_its_locks_and_waiters": [
        ("1a try f W 0 #1", "ok 1"),
        ("1a tryflock g W #2", "ok 2"),
        ("2b wait f W 0 #3", ""),
        ("1c wait f R 0 #4", ""),
        ("2d wait f R 0 #5", ""),
        ("2b waitflock g R #6", ""),
        ("1 drop", "ENOTCONN 4; ok 3; ok 6"),
        ("2b flush f", "ok 5"),
        ("1 drop", ""),
    ],
}

WAITING: dict[str, Steps] = {
    "waiters_wake_in_the_order_they_came": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("2c wait f W 0-9 #3", ""),
        ("1a try f U 0-9 #4", "ok 4; ok 2"),
        ("2b try f U 0-9 #5", "ok 5; ok 3"),
    ],
    "readers_wake_together": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2b wait f R 0-9 #2", ""),
        ("2c wait f R 0-9 #3", ""),
        ("2d wait f W 0-9 #4", ""),
        ("2e wait f R 0-9 #5", ""),
        ("1a try f U 0-9 #6", "ok 6; ok 2; ok 3"),
    ],
    "a_waiting_writer_is_not_starved_by_readers": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("2c wait f R 0-9 #3", ""),
        ("2d try f R 0-9 #4", "EAGAIN 4"),
        ("1a flush f", "ok 2"),
        ("2b flush f", "ok 3"),
    ],
    "fairness_concerns_conflicting_bytes_only": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("2c try f R 10-19 #3", "ok 3"),
    ],
    "cancelling_frees_the_place": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("2c wait f R 0-9 #3", ""),
        ("cancel #2", "EINTR 2; ok 3"),
        ("cancel #2", ""),
    ],
    "cancelling_too_late_leaves_the_lock": [
        ("1a try f W 0 #1", "ok 1"),
        ("cancel #1", ""),
        ("2b test f R 0", "W 0-0 pid 101"),
    ],
    "part_of_a_range_freed_is_not_enough": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("1a try f U 0-4 #3", "ok 3"),
        ("1a try f U 5-9 #4", "ok 4; ok 2"),
    ],
    "a_downgrade_lets_readers_in": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2b wait f R 0-4 #2", ""),
        ("2c wait f W 5-9 #3", ""),
        ("1a try f R 0-9 #4", "ok 4; ok 2"),
    ],
    "an_upgrade_waits_and_keeps_what_it_has": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b try f R 0-9 #2", "ok 2"),
        ("1a wait f W 0-9 #3", ""),
        ("2c try f W 0 #4", "EAGAIN 4"),
        ("2b flush f", "ok 3"),
        ("2b test f R 0", "W 0-9 pid 101"),
    ],
    "a_cancelled_upgrade_keeps_the_read_lock": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b try f R 0-9 #2", "ok 2"),
        ("1a wait f W 0-9 #3", ""),
        ("cancel #3", "EINTR 3"),
        ("2c test f W 0", "R 0-9 pid 101"),
    ],
}

PASSING: dict[str, Steps] = {
    "a_holder_passes_who_waits_for_it_when_it_upgrades": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b wait f W 0-9 #2", ""),
        ("1a wait f W 0-9 #3", "ok 3"),
        ("1a flush f", "ok 2"),
    ],
    "a_holder_passes_who_waits_for_it_when_it_asks_for_more": [
        ("1a try f W 0-9 #1", "ok 1"),
        ("2b wait f W 0-19 #2", ""),
        ("1a wait f W 10-19 #3", "ok 3"),
    ],
    "a_holder_passes_who_waits_for_it_through_others_and_other_files": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try g W 0 #2", "ok 2"),
        ("2b wait f W 0 #3", ""),
        ("2c wait g W 0-9 #4", ""),
        ("1a try g W 9 #5", "ok 5"),
    ],
    "who_does_not_wait_for_the_holder_is_not_passed": [
        ("1a try f W 0 #1", "ok 1"),
        ("1b try f R 10 #2", "ok 2"),
        ("2c wait f W 5-10 #3", ""),
        ("1a try f R 5 #4", "EAGAIN 4"),
    ],
    "a_new_wait_frees_those_that_only_fairness_held": [
        ("1a try f R 0-9 #1", "ok 1"),
        ("2b try g W 0 #2", "ok 2"),
        ("2c wait f W 0-9 #3", ""),
        ("2b wait f R 0-9 #4", ""),
        # a waits for b, b only for fairness behind c, c for a: nobody is deadlocked, so b passes c.
        ("1a wait g W 0 #5", "ok 4"),
        ("2b flush g", "ok 5"),
    ],
    "fairness_among_flocks_hangs_nobody_either": [
        ("1a tryflock f R #1", "ok 1"),
        ("2b tryflock g W #2", "ok 2"),
        ("2c waitflock f W #3", ""),
        ("2b waitflock f R #4", ""),
        ("1a waitflock g R #5", "ok 4"),
    ],
}

FLOCK: dict[str, Steps] = {
    "two_readers_that_upgrade_do_not_wait_for_each_other": [
        ("1a tryflock f R #1", "ok 1"),
        ("2b tryflock f R #2", "ok 2"),
        ("1a waitflock f W #3", ""),
        # a gave its lock up to wait, so that b is alone; on Linux, too, b then has it before a wakes.
        ("2b waitflock f W #4", "ok 4"),
        ("2b tryflock f U #5", "ok 5; ok 3"),
    ],
    "a_refused_upgrade_loses_the_read_lock": [
        ("1a tryflock f R #1", "ok 1"),
        ("2b tryflock f R #2", "ok 2"),
        ("1a tryflock f W #3", "EAGAIN 3"),
        ("2b tryflock f W #4", "ok 4"),
    ],
    "a_lone_reader_upgrades_in_place_and_downgrades": [
        ("1a tryflock f R #1", "ok 1"),
        ("1a tryflock f W #2", "ok 2"),
        ("2b waitflock f R #3", ""),
        ("1a tryflock f R #4", "ok 4; ok 3"),
    ],
    "no_deadlock_is_reported_among_flocks": [
        ("1a tryflock f W #1", "ok 1"),
        ("2b tryflock g W #2", "ok 2"),
        ("1a waitflock g W #3", ""),
        ("2b waitflock f W #4", ""),
        ("cancel #3", "EINTR 3"),
        ("1 release f", "ok 4"),
    ],
}

DEADLOCK: dict[str, Steps] = {
    "two_owners_on_two_sessions": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try f W 1 #2", "ok 2"),
        ("1a wait f W 1 #3", ""),
        ("2b wait f W 0 #4", "EDEADLK 4"),
        ("2b flush f", "ok 3"),
    ],
    "three_owners_on_three_files": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try g W 0 #2", "ok 2"),
        ("3c try h W 0 #3", "ok 3"),
        ("1a wait g R 0 #4", ""),
        ("2b wait h R 0 #5", ""),
        ("3c wait f R 0 #6", "EDEADLK 6"),
    ],
    "two_readers_that_upgrade": [
        ("1a try f R 0 #1", "ok 1"),
        ("2b try f R 0 #2", "ok 2"),
        ("1a wait f W 0 #3", ""),
        ("2b wait f W 0 #4", "EDEADLK 4"),
    ],
    "through_the_second_of_several_holders": [
        ("1a try f R 0 #1", "ok 1"),
        ("2b try f R 0 #2", "ok 2"),
        ("3c try g W 0 #3", "ok 3"),
        ("3c wait f W 0 #4", ""),
        ("2b wait g W 0 #5", "EDEADLK 5"),
        ("1a wait g W 0 #6", "EDEADLK 6"),
    ],
    "a_request_that_must_not_wait_is_merely_refused": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try f W 1 #2", "ok 2"),
        ("1a wait f W 1 #3", ""),
        ("2b try f W 0 #4", "EAGAIN 4"),
    ],
    "no_cycle_no_error": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try f W 1 #2", "ok 2"),
        ("1a wait f W 1 #3", ""),
        ("3c wait f W 0 #4", ""),
        ("2b flush f", "ok 3"),
    ],
    "a_cancelled_wait_is_no_edge": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try f W 1 #2", "ok 2"),
        ("1a wait f W 1 #3", ""),
        ("cancel #3", "EINTR 3"),
        ("2b wait f W 0 #4", ""),
    ],
    "ofd_owners_that_are_known_as_such_take_no_part": [
        ("1x try f W 0 ofd #1", "ok 1"),
        ("2y try f W 1 ofd #2", "ok 2"),
        ("1x wait f W 1 ofd #3", ""),
        ("2y wait f W 0 ofd #4", ""),
        ("2 release f", "EBADF 4; ok 3"),
    ],
    "a_process_with_two_threads_waiting_may_get_what_one_of_them_asked": [
        ("1a try f W 0 #1", "ok 1"),
        ("2b try f W 1 #2", "ok 2"),
        ("3c try f W 2 #3", "ok 3"),
        ("1a wait f W 1 #4", ""),
        ("1a wait f W 2 #5", ""),
        ("2b wait f W 2 #6", ""),
        ("3c flush f", "ok 5"),
        ("1a flush f", "ok 6"),
    ],
}

TABLES = {
    f"{table}_{name}": steps
    for table, scenarios in {
        "exclusion": EXCLUSION,
        "getlk": GETLK,
        "endings": ENDINGS,
        "waiting": WAITING,
        "passing": PASSING,
        "flock": FLOCK,
        "deadlock": DEADLOCK,
    }.items()
    for name, steps in scenarios.items()
}


@pytest.mark.parametrize("steps", TABLES.values(), ids=TABLES.keys())
def test_scenario(steps: Steps) -> None:
    script = LockScript()
    assert [(step, script.run(step)) for step, _ in steps] == steps


HELD_AFTER: dict[str, tuple[list[str], str]] = {
    "unlocking_the_middle_splits": (["W 0-9", "U 3-5"], "W 0-2, W 6-9"),
    "unlocking_an_edge_shortens": (["W 0-9", "U 0-3", "U 8-20"], "W 4-7"),
    "neighbours_merge": (["W 0-4", "W 10-14", "W 5-9"], "W 0-14"),
    "overlaps_merge": (["R 0-6", "R 4-9"], "R 0-9"),
    "a_gap_of_one_byte_stays": (["R 0-4", "R 6-9"], "R 0-4, R 6-9"),
    "an_upgrade_of_the_middle_splits": (["R 0-9", "W 3-5"], "R 0-2, W 3-5, R 6-9"),
    "a_downgrade_merges_with_its_neighbours": (["R 0-9", "W 3-5", "R 2-6"], "R 0-9"),
    "one_lock_swallows_many": (["W 0", "R 2", "W 4", "R 6", "R 1-7"], "W 0-0, R 1-7"),
    "the_end_of_the_offsets_is_a_byte_like_others": (["W 5-", "R 5-7", "U 9-"], "R 5-7, W 8-8"),
    "the_whole_file_goes": (["W 0-3", "R 7-", "U 0-"], ""),
    "locking_again_changes_nothing": (["W 2-5", "W 2-5", "W 3-4"], "W 2-5"),
}


@pytest.mark.parametrize(("steps", "held"), HELD_AFTER.values(), ids=HELD_AFTER.keys())
def test_ranges_of_one_owner(steps: list[str], held: str) -> None:
    script = LockScript()
    for ticket, step in enumerate(steps):
        assert script.run(f"1a try f {step} #{ticket}") == f"ok {ticket}"
    assert script.held("1a") == held
