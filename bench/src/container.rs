//! A container as a member of an Env, against the same image run by Docker itself on its default bridge.

use crate::create::breakdown;
use crate::docker::{self, Docker};
use crate::table::{Row, median};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::{Dockerd, Lab, Must, Setup, run, within};

/// Interleaved rounds.
const ROUNDS: usize = 21;
/// How much of `docker run -d` an Env with one member may take.
const CREATE_RATIO_MAX: f64 = 0.9;
/// How much of `docker rm -f` its end may take.
const DESTROY_RATIO_MAX: f64 = 1.0;
/// What the image runs: nobody else sleeps for so long.
const ARGV: [&str; 2] = ["sleep", "7654321"];
/// How the image is called after [`Dockerd::busybox`]'s archive was loaded.
const IMAGE: &str = "test:latest";
/// How long a process may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// One container: made until its image's process runs and the command has ended, and ended until nothing is left of it.
/// Both sides are command lines that ask the same daemon of Docker's.
pub fn over_docker() -> Vec<Row> {
    let (host, client) = testkit::spaces();
    let measured = docker::with(&host, |docker| {
        let setup = Setup::new("bench").log("info,tt_host=debug").within(&host, &client);
        let lab = setup.docker_at(docker.socket()).start()?;
        let saved = Dockerd::busybox(lab.dir(), &ARGV).display().to_string();
        lab.tt(&["template", "import", "example.org/bench/sleep", &saved]).good();
        // The first one takes the image in.
        create(&lab);
        destroy(&lab);
        docker_tool(docker, &["load", "--quiet", "--input", &saved]);
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..ROUNDS {
            let id = timed(&mut times[0], || docker_tool(docker, &["run", "-d", IMAGE]));
            assert_eq!(running(), 1, "docker run had not started it");
            timed(&mut times[1], || docker_tool(docker, &["rm", "-f", &id]));
            timed(&mut times[2], || create(&lab));
            timed(&mut times[3], || destroy(&lab));
            assert_eq!(running(), 0, "something is left");
        }
        lab.tt(&["template", "rm", "sleep"]).good();
        let layers = breakdown(&lab.log());
        lab.finish();
        Some((times.map(median), layers))
    });
    let ([run, remove, create, destroy], layers) = match measured {
        Ok(Some(measured)) => measured,
        // The lab has said why.
        Ok(None) => return Vec::new(),
        Err(reason) => {
            testkit::skip("bench container", &reason);
            return Vec::new();
        }
    };
    let what = "tt env create of one container over docker run -d on the default bridge";
    let end = "tt env destroy of it over docker rm -f";
    let mut rows = vec![
        Row::ratio(what, create, run, Some(CREATE_RATIO_MAX)),
        Row::ratio(end, destroy, remove, Some(DESTROY_RATIO_MAX)),
    ];
    rows.extend(layers);
    rows
}

/// Notes how long it took.
fn timed<T>(times: &mut Vec<Duration>, action: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = action();
    times.push(begin.elapsed());
    done
}

/// The member is ready when the command ends, and its image's process is about to run or runs.
fn create(lab: &Lab) {
    lab.tt(&["env", "create", "bench", "--vm", "sleep,engine=docker"]).good();
    assert!(within(PATIENCE, || running() == 1), "the image's process does not run");
}

fn destroy(lab: &Lab) {
    lab.tt(&["env", "destroy", "bench"]).good();
}

/// What Docker's own command line says, without white space at the end.
fn docker_tool(docker: &Docker, args: &[&str]) -> String {
    let host = format!("unix://{}", docker.socket().display());
    let ran = run(Command::new("docker").args(["--host", &host]).args(args), b"");
    ran.good().trim_end().to_owned()
}

/// How many processes of the image there are.
fn running() -> usize {
    let mut wanted = ARGV.join("\0").into_bytes();
    wanted.push(0);
    let all = fs::read_dir("/proc").must("list processes").flatten();
    all.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|argv| argv == wanted))
        .count()
}
