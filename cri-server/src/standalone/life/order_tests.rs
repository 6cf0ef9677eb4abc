//! The state machine by tables of what happens and what is ordered then.

use super::{
    super::{
        super::manifest::Manifest,
        plan::Plan,
        restart::{End, FIRST},
    },
    *,
};

/// A pod with these init containers and these apps, each with more fields behind its name.
fn order(spec: &str, init: &[&str], apps: &[&str]) -> Order {
    let list = |all: &[&str]| all.iter().map(|one| format!("{{image: i, name: {one}}}")).collect::<Vec<_>>();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{{spec} initContainers: [{}], containers: [{}]}}\n",
        list(init).join(", "),
        list(apps).join(", "),
    );
    let mut plan = Plan::of(&Manifest::parse("m", &text).unwrap(), None).unwrap();
    plan.grace = seconds(9);
    Order::new(&plan, FIRST)
}

fn begin(member: usize) -> Command {
    Command::Begin { member, attempt: 0 }
}

fn ended(code: i32) -> End {
    End { code, unhealthy: false }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn init_containers_come_one_after_another_and_apps_at_once() {
    let mut order = order("restartPolicy: Never,", &["i0", "i1"], &["a", "b"]);
    let now = Instant::now();
    assert_eq!(order.next(now), [begin(0)]);
    order.started(0);
    assert_eq!(order.next(now), [], "it is waited for its end, not for its start");
    order.ended(0, ended(0), now);
    assert_eq!(order.next(now), [begin(1)]);
    order.ended(1, ended(0), now);
    assert_eq!(order.next(now), [begin(2), begin(3)]);
    order.ended(3, ended(4), now);
    assert_eq!(order.next(now), []);
    order.ended(2, ended(0), now);
    assert_eq!(order.next(now), []);
    assert_eq!(order.phase, Phase::Over(Why::Done));
}

#[test]
fn an_init_container_that_fails_for_good_ends_the_pod() {
    let mut order = order("restartPolicy: Never,", &["s, restartPolicy: Always", "i"], &["a"]);
    let now = Instant::now();
    assert_eq!(order.next(now), [begin(0)]);
    order.started(0);
    assert_eq!(order.next(now), [begin(1)]);
    order.ended(1, ended(7), now);
    let deadline = now + seconds(9);
    assert_eq!(order.next(now), [Command::Stop { member: 0, deadline }]);
    order.ended(0, ended(143), now);
    assert_eq!(order.next(now), []);
    assert_eq!(order.phase, Phase::Over(Why::Done));
    assert_eq!(order.members[2].stage, Stage::Ended { code: 0 }, "the app has never begun");
}

#[test]
fn an_init_container_is_tried_again_with_backoff_unless_the_policy_is_never() {
    for spec in ["", "restartPolicy: OnFailure,"] {
        let mut order = order(spec, &["i"], &["a"]);
        let now = Instant::now();
        assert_eq!(order.next(now), [begin(0)]);
        assert_eq!(order.ended(0, ended(1), now), Some(now), "the first restart comes at once");
        assert_eq!(order.next(now), [Command::Begin { member: 0, attempt: 1 }]);
        assert_eq!(order.ended(0, ended(1), now), Some(now + FIRST));
        assert_eq!((order.next(now), order.wakes()), (vec![], Some(now + FIRST)));
        assert_eq!(order.next(now + FIRST), [Command::Begin { member: 0, attempt: 2 }]);
        order.ended(0, ended(0), now);
        assert_eq!(order.next(now), [begin(1)]);
    }
}

#[test]
fn a_sidecar_is_awaited_once_and_kept_while_the_pod_runs() {
    let mut order = order("restartPolicy: Never,", &["s, restartPolicy: Always", "i"], &["a"]);
    let now = Instant::now();
    assert_eq!(order.next(now), [begin(0)]);
    assert_eq!(order.next(now), [], "its startup probe has not succeeded");
    order.started(0);
    assert_eq!(order.next(now), [begin(1)]);
    // It ends while the next one runs: it begins again, and nobody waits for it.
    order.ended(0, ended(0), now);
    assert_eq!(order.next(now), [Command::Begin { member: 0, attempt: 1 }]);
    order.ended(1, ended(0), now);
    assert_eq!(order.next(now), [begin(2)]);
}

#[test]
fn a_sidecar_that_does_not_get_up_keeps_the_next_one_waiting() {
    let mut order = order("", &["s, restartPolicy: Always"], &["a"]);
    let now = Instant::now();
    assert_eq!(order.next(now), [begin(0)]);
    order.ended(0, ended(1), now);
    assert_eq!(order.next(now), [Command::Begin { member: 0, attempt: 1 }]);
    order.ended(0, ended(1), now);
    assert_eq!(order.next(now + FIRST), [Command::Begin { member: 0, attempt: 2 }]);
    order.started(0);
    assert_eq!(order.next(now + FIRST), [begin(1)]);
}

/// A pod of two sidecars and two apps, all running.
fn running(spec: &str, now: Instant) -> Order {
    let mut order = order(spec, &["s0, restartPolicy: Always", "s1, restartPolicy: Always"], &["a", "b"]);
    order.next(now);
    order.started(0);
    order.next(now);
    order.started(1);
    assert_eq!(order.next(now).len(), 2);
    order
}

#[test]
fn at_the_end_apps_go_first_and_sidecars_in_reverse_within_one_grace() {
    let now = Instant::now();
    let mut order = running("", now);
    order.end(Why::Signal(2), now);
    let deadline = now + seconds(9);
    let stop = |member| Command::Stop { member, deadline };
    assert_eq!(order.next(now), [stop(2), stop(3)]);
    order.ended(3, ended(0), now);
    assert_eq!(order.next(now), [], "the other app is waited for");
    order.ended(2, ended(0), now + seconds(3));
    assert_eq!(order.next(now + seconds(3)), [stop(1)], "with what is left of the grace");
    order.ended(1, ended(1), now + seconds(4));
    assert_eq!(order.next(now + seconds(4)), [stop(0)], "a sidecar is not started again");
    order.ended(0, ended(0), now + seconds(4));
    assert_eq!((order.next(now), order.phase), (vec![], Phase::Over(Why::Signal(2))));
}

#[test]
fn whoever_is_in_a_hurry_is_obeyed_once() {
    let now = Instant::now();
    let mut order = running("", now);
    order.end(Why::Timeout, now);
    assert_eq!(order.next(now).len(), 2);
    let later = now + seconds(1);
    order.hurry(later);
    let stop = |member| Command::Stop { member, deadline: later };
    assert_eq!(order.next(later), [stop(2), stop(3)]);
    assert_eq!(order.next(later), []);
}

#[test]
fn nothing_begins_once_the_pod_ends() {
    let now = Instant::now();
    let mut order = running("", now);
    order.ended(2, ended(1), now);
    order.next(now);
    order.ended(2, ended(1), now);
    assert_eq!(order.wakes(), Some(now + FIRST));
    order.end(Why::Deadline, now);
    assert_eq!(order.wakes(), None);
    assert_eq!(order.next(now + FIRST).len(), 1, "only the other app is stopped");
    order.end(Why::Stopped, now);
    assert_eq!(order.phase, Phase::Ending(Why::Deadline), "the first reason stays");
}

#[test]
fn a_pod_whose_apps_end_for_good_takes_its_sidecars_with_it() {
    let now = Instant::now();
    let mut order = running("restartPolicy: OnFailure,", now);
    order.ended(2, ended(0), now);
    order.ended(3, ended(1), now);
    assert_eq!(order.next(now), [Command::Begin { member: 3, attempt: 1 }]);
    order.ended(3, ended(0), now);
    assert_eq!(order.next(now), [Command::Stop { member: 1, deadline: now + seconds(9) }]);
}

#[test]
fn a_job_gives_up_when_its_containers_have_failed_too_often() {
    let policy = "restartPolicy: OnFailure,";
    for (retries, apps) in [(0, 1), (2, 3)] {
        let mut order = order(policy, &["s, restartPolicy: Always"], &["a", "b"]);
        order.retries = Some(retries);
        let now = Instant::now();
        order.next(now);
        order.started(0);
        order.next(now);
        // A sidecar's end is no failure of the job.
        assert!(order.ended(0, ended(1), now).is_some());
        for begun in 1..apps {
            let due = order.ended(1, ended(7), now).expect("it begins again");
            assert!(order.next(due).contains(&Command::Begin { member: 1, attempt: begun }));
        }
        assert_eq!(order.ended(1, ended(7), now), None);
        assert_eq!(order.phase, Phase::Ending(Why::GivenUp(7)), "{retries}");
    }
}

#[test]
fn an_interrupt_that_ends_the_reader_too_is_still_an_interrupt() {
    let now = Instant::now();
    for words in [[Why::Unread, Why::Signal(2)], [Why::Signal(2), Why::Unread]] {
        let mut order = order("restartPolicy: Never,", &[], &["a"]);
        order.next(now);
        words.into_iter().for_each(|why| order.end(why, now));
        assert_eq!(order.phase, Phase::Ending(Why::Signal(2)));
    }
}
