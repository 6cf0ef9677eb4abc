//! Random sequences of everything that can happen to a few pods, against a model of what must be true after
//! each step. A sequence that fails is shrunk to the shortest that still does.
//!
//! `PODHOLD_CASES` (8) and `PODHOLD_STEPS` (24) say how much is tried, `PODHOLD_SEED` (4) what: the same
//! seed tries the same again.

#![allow(clippy::unwrap_used, reason = "a test")]

mod model;
mod system;

use std::{cell::RefCell, sync::atomic::Ordering};

use podhold_integration::{require, rig::Rig};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use self::{
    model::{Life, Model, Step},
    system::System,
};

fn setting(name: &str, default: u32) -> u32 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A runner whose choices follow from the seed alone. Seeds are given by hand, so no files are kept.
fn runner(seed: u32, cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

async fn try_steps(
    system: &mut System,
    mut model: Model,
    steps: &[Step],
    seen: impl Fn(),
) -> Result<(), String> {
    for step in steps {
        seen();
        model = Model::apply(model, step);
        let done = system.carry_out(*step, &model).await;
        done.map_err(|wrong| format!("{step:?}: {wrong}"))?;
        system.check(&model).await.map_err(|wrong| format!("after {step:?}: {wrong}"))?;
    }
    Ok(())
}

#[test]
fn whatever_happens_the_daemon_answers_as_the_model_and_nothing_is_left() {
    require!(root, program "docker-registry", program "nft", program "iptables", program "ip",
             plugin "bridge", plugin "portmap");
    let seed = setting("PODHOLD_SEED", 4);
    let steps = usize::try_from(setting("PODHOLD_STEPS", 24)).unwrap();
    let cases = setting("PODHOLD_CASES", 8);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let system = RefCell::new(System::new(runtime.block_on(Rig::start())));
    let count = std::cell::Cell::new(0);
    let strategy = Model::sequential_strategy(steps / 2..=steps);
    let result = runner(seed, cases).run(&strategy, |(model, steps, seen)| {
        let mut system = system.borrow_mut();
        let tell = || {
            count.set(count.get() + 1);
            if let Some(seen) = &seen {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        };
        let tried = runtime.block_on(try_steps(&mut system, model, &steps, tell));
        let ended = runtime.block_on(system.end());
        tried.and(ended).map_err(TestCaseError::fail)
    });
    if let Err(TestError::Fail(reason, (_, steps, _))) = result {
        let list: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
        let list = list.join("\n");
        panic!("{reason}\nthe shortest sequence that fails:\n{list}\nto run it again: PODHOLD_SEED={seed}");
    }
    result.map_err(|error| error.to_string()).unwrap();
    println!("{} steps in {cases} cases, seed {seed}", count.get());
    runtime.block_on(system.into_inner().rig.finish());
}

/// The promise of the test above when it fails, on the model alone: what does not matter is left out.
#[test]
fn a_sequence_that_fails_is_shrunk_to_the_shortest() {
    let fails = |model: &Model| {
        let lives = model.pods.iter().flatten().flat_map(|pod| pod.containers.iter().flatten());
        lives.into_iter().any(|container| container.life == Life::Exited(137))
    };
    let strategy = Model::sequential_strategy(40..=60);
    let result = runner(4, 200).run(&strategy, |(mut model, steps, seen)| {
        for step in &steps {
            if let Some(seen) = &seen {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            model = Model::apply(model, step);
            if fails(&model) {
                return Err(TestCaseError::fail("killed"));
            }
        }
        Ok(())
    });
    let Err(TestError::Fail(_, (_, steps, _))) = result else { panic!("no sequence failed") };
    assert_eq!(steps.len(), 4, "run, create, start, stop: {steps:?}");
}
