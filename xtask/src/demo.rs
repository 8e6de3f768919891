//! `cargo xtask demo`: the main job of TT on this machine, from nothing to nothing, by the commands that a user types.
//! It leaves the packages that it installed, and nothing else, whatever happens on the way.

mod host;

use crate::command::Argv;
use crate::compile::{self, Built};
use crate::failure::{Failure, Outcome};
use crate::footprint::Footprint;
use crate::say::{self, Steps};
use crate::sudo::Ticket;
use crate::{interrupt, packages};
use host::Host;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The guest's port that is published.
const PORT: u16 = 80;
/// What the web server of one guest gives.
const GREETING: &str = "hello from web";
/// How long the guest's answer through a published port may take.
const HTTP_LIMIT: Duration = Duration::from_secs(20);
/// Between two tries: the guest's server has just been started.
const RETRY: Duration = Duration::from_millis(300);
/// Most that the guest's answer may say.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Runs it.
///
/// # Errors
/// If a step failed, or the machine is not as it was.
pub fn run() -> Outcome {
    let _ticket = Ticket::take()?;
    interrupt::remember_interrupts();
    let start = Instant::now();
    let mut steps = Steps::default();
    let mut installed = None;
    let outcome = prepare(&mut steps, &mut installed).and_then(|built| {
        let before = Footprint::take()?;
        let shown = walk_on_a_host_of_its_own(&mut steps, &built);
        let same = steps.run("the machine is as it was", || before.expect_again());
        shown.and(same.ok_or_else(|| Failure::new("something was left on the machine")))
    });
    say::title("what was done");
    say::line(steps.table().trim_end());
    say::line(packages::told(installed.as_deref()));
    say::line(format_args!("in {:.0} s", start.elapsed().as_secs_f64()));
    outcome
}

/// A step that the rest needs.
fn needed<T>(steps: &mut Steps, name: &str, step: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    if interrupt::came() {
        return Err(Failure::new("interrupted"));
    }
    steps.run(name, step).ok_or_else(|| Failure::new(format!("the demo ended at: {name}")))
}

fn prepare(steps: &mut Steps, installed: &mut Option<Vec<String>>) -> Outcome<Built> {
    let new = needed(steps, "install what is missing", || packages::install(&packages::TO_RUN))?;
    *installed = Some(new);
    needed(steps, "build", compile::build)
}

/// The walk itself, with what was built; its host is cleaned up when it ends, however it ends.
///
/// # Errors
/// If a step failed.
pub fn walk_on_a_host_of_its_own(steps: &mut Steps, built: &Built) -> Outcome {
    let mut host = Host::new(built)?;
    let walked = walk(steps, &mut host);
    if walked.is_err() {
        host.tell_log();
    }
    let ended = steps.run("end the daemon, remove its directories", || host.end());
    walked.and(ended.ok_or_else(|| Failure::new("the host could not be cleaned up")))
}

fn walk(steps: &mut Steps, host: &mut Host) -> Outcome {
    needed(steps, "look at this host", || host.doctor())?;
    needed(steps, "start a daemon", || host.start())?;
    let host = &*host;
    needed(steps, "build the template `micro`", || host.tt(["template", "build", "micro"]))?;
    needed(steps, "create an Env of two guests", || {
        let web = format!("web=micro,port={PORT}");
        host.tt(["env", "create", "shop", "--vm", &web, "--vm", "db=micro", "--ttl", "1h"])
    })?;
    let shown = needed(steps, "show it", || host.tt(["env", "show", "shop"]))?;
    needed(steps, "reach one guest from the other, by name", || {
        let serve = format!(
            "mkdir -p /srv/www && echo '{GREETING}' > /srv/www/index.html && sync && httpd -h /srv/www"
        );
        host.tt(["exec", "shop/web", "--", "sh", "-c", &serve])?;
        host.tt(["exec", "shop/db", "--", "ping", "-c", "1", "web"])?;
        expect_greeting(&host.tt(["exec", "shop/db", "--", "wget", "-qO-", "http://web/"])?)
    })?;
    needed(steps, "reach a guest's port from the host", || reach(&shown))?;
    needed(steps, "stop it", || host.tt(["env", "stop", "shop"]))?;
    needed(steps, "list it", || host.tt(["env", "ls"]))?;
    needed(steps, "start it again", || host.tt(["env", "start", "shop"]))?;
    needed(steps, "its server goes on, and its data is still there", || {
        expect_greeting(&host.tt(["exec", "shop/web", "--", "cat", "/srv/www/index.html"])?)?;
        expect_greeting(&host.tt(["exec", "shop/db", "--", "wget", "-qO-", "http://web/"])?)?;
        reach(&shown)
    })?;
    needed(steps, "destroy it", || host.tt(["env", "destroy", "shop"]))?;
    needed(steps, "the host is what the records say", || host.tt(["verify"]))?;
    Ok(())
}

fn expect_greeting(text: &str) -> Outcome {
    match text.contains(GREETING) {
        true => Ok(()),
        false => Err(Failure::new(format!("`{GREETING}` was expected, not `{}`", text.trim()))),
    }
}

/// Asks the guest's server at the host's own address and through 127.0.0.1.
fn reach(shown: &str) -> Outcome {
    let published = published(shown).ok_or_else(|| {
        Failure::new(format!("`tt env show` names no published address of port {PORT}"))
    })?;
    for address in [published, SocketAddr::from(([127, 0, 0, 1], published.port()))] {
        say::prompt(format_args!("GET http://{address}/"));
        let start = Instant::now();
        let answer = loop {
            match get(address) {
                Err(_) if start.elapsed() < HTTP_LIMIT && !interrupt::came() => {
                    std::thread::sleep(RETRY);
                }
                result => break result.map_err(Failure::to("get a page from", address))?,
            }
        };
        say::line(answer.trim_end());
        expect_greeting(&answer)?;
    }
    Ok(())
}

/// The address that is published for the guest's port: `192.0.2.7:20000 -> 80`.
fn published(shown: &str) -> Option<SocketAddr> {
    let words: Vec<&str> = shown.split_whitespace().collect();
    let port = PORT.to_string();
    let hit = words.windows(3).find(|w| w[1] == "->" && w[2].trim_end_matches(',') == port)?;
    hit[0].parse().ok()
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Runs `tt`, showing the command and what it prints.
fn shown(argv: &Argv) -> Outcome<String> {
    say::prompt(argv);
    let mut text = String::new();
    argv.watch(|line| {
        text.push_str(line);
        text.push('\n');
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_address_is_read() {
        let shown = "NAME  PHASE\nweb  micro  192.0.2.7:20000 -> 8080, 192.0.2.7:20001 -> 80\n";
        assert_eq!(published(shown), Some("192.0.2.7:20001".parse().unwrap()));
        assert_eq!(published("db micro"), None);
    }
}
