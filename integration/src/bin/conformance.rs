//! `podhold-conformance`: runs the official CRI suite against `podhold`, and judges the result.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use podhold_integration::{
    conformance::{ConformanceError, Run, Suite, skips::Skips},
    images::conformance::REGISTRIES,
    needs, programs,
    rig::{REGISTRY, Rig},
};

#[derive(Parser)]
#[command(about = "Runs the official CRI suite against podhold, in namespaces of its own")]
struct Arguments {
    /// The suite's program
    #[arg(long)]
    critest: PathBuf,
    /// The list of specs that are skipped
    #[arg(long)]
    skips: PathBuf,
    /// Run only specs that match this regular expression, and only once
    #[arg(long)]
    focus: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            println!("FAILED: conformance: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool, ConformanceError> {
    let skips = Skips::read(&arguments.skips)?;
    let program = arguments.critest.canonicalize().map_err(|source| ConformanceError::File {
        what: "find the suite's program",
        path: arguments.critest,
        source,
    })?;
    let beside = programs::built("podhold");
    let suite = Suite { program, output: beside.with_file_name("conformance") };
    assert!(needs::is_root(), "the suite needs root: its pods are real");
    let rig = Rig::start().await;
    for registry in REGISTRIES {
        rig.places.mirror(registry, REGISTRY).map_err(|source| ConformanceError::File {
            what: "write",
            path: rig.places.hosts(),
            source,
        })?;
    }
    let version = suite.version(&rig).await?;
    println!("critest {version} ({})", suite.program.display());
    let mut good = true;
    for run in runs(arguments.focus, skips.least_passed(&version)) {
        println!("conformance: {}", run.name);
        let well = suite.run(&rig, &run, &skips).await?;
        // One line for each run: .ci/run counts them.
        if well {
            println!("PASSED: conformance: {}", run.name);
        }
        good &= well;
    }
    suite.clean_up(&rig).await?;
    rig.finish().await;
    Ok(good)
}

fn runs(focus: Option<String>, least_passed: usize) -> Vec<Run> {
    if focus.is_some() {
        return vec![Run { name: "focus", focus, least_passed: 1, options: &[] }];
    }
    vec![
        Run { name: "all", focus: None, least_passed, options: &[] },
        Run {
            name: "websocket",
            focus: Some(r"\[k8s\.io\] Streaming".to_owned()),
            least_passed: 5,
            options: &["--websocket-exec", "--websocket-attach", "--websocket-portforward"],
        },
    ]
}
