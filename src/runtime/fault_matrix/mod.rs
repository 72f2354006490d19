//! Every fault of `docs/safety.md`, injected: what the loop does, how the robot ends, what the exit code says.
//!
//! [`line`] holds what one thread can show, in lockstep, with a robot on a line that fails on purpose; [`threads`]
//! what takes the threads of a real run; [`swaps`] policies from outside that collapse. The last test compares the list with the table of the document.

mod line;
mod swaps;
mod threads;
mod world;

/// Faults shown by other tests, because they take a process: fault, file, name of the test.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("SIGINT, SIGTERM", "tests/operator.rs", "a_terminated_run_disarms_the_robot_and_a_killed_one_leaves_it_in_fault"),
    (
        "SIGKILL, power cut",
        "tests/operator.rs",
        "a_terminated_run_disarms_the_robot_and_a_killed_one_leaves_it_in_fault",
    ),
    (
        "A new policy fails its checks",
        "tests/operator.rs",
        "good_bundles_are_swapped_in_and_bad_ones_refused_while_the_loop_runs_on",
    ),
    (
        "Commands arrive late or are replayed",
        "firmware-bridge/src/drive/tests.rs",
        "a_pause_after_reset_is_no_fault_and_old_commands_stay_old",
    ),
    (
        "A person's command is damaged, old, or no action of this robot",
        "src/runtime/person.rs",
        "damaged_old_and_foreign_commands_are_refused_and_counted",
    ),
    (
        "A word on an episode comes after its end",
        "src/runtime/classifier.rs",
        "a_lost_step_ends_the_row_and_a_late_word_is_not_the_next_episodes",
    ),
    (
        "A label for an episode whose end is not in the buffer",
        "tests/replay_transitions.rs",
        "labels_reach_the_end_of_their_episode_or_nothing",
    ),
    ("Required rights are refused", "tests/operator.rs", "a_required_right_that_is_refused_is_an_error"),
];

/// Rows of the document: fault and exit code.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../../docs/safety.md");
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].to_owned(), cells[cells.len() - 1].to_owned())).collect()
}

#[test]
fn the_document_lists_exactly_the_faults_that_are_tested() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (fault, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains(&format!("fn {test}")), "{fault}: {file} has no test {test}");
    }
    let here = line::CASES.iter().map(|case| (case.fault, case.exit_code));
    let threads = threads::CASES.iter().map(|case| (case.fault, case.exit_code));
    let swaps = swaps::CASES.iter().map(|(fault, _)| (*fault, 0));
    let mut tested: Vec<(String, String)> =
        here.chain(threads).chain(swaps).map(|(fault, code)| (fault.to_owned(), code.to_string())).collect();
    let mut documented = documented();
    documented.retain(|(fault, _)| !ELSEWHERE.iter().any(|(elsewhere, ..)| elsewhere == fault));
    assert_eq!(
        documented.len() + ELSEWHERE.len(),
        self::documented().len(),
        "a fault of ELSEWHERE is not in the table"
    );
    tested.sort();
    documented.sort();
    assert_eq!(tested, documented, "tests on the left, docs/safety.md on the right");
}
