//! What is shown while the daemon works: on a terminal one line for each member that changes in place, elsewhere one line
//! for each change. All of it goes to standard error and none of it is a result.

use super::lines::{member_cells, phase, trouble};
use super::output::Output;
use super::text::{Table, format_tenths};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Duration;
use tt_api::views::{EnvView, VmView};
use tt_model::VmId;

/// How often the time that passes is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Shows how an Env gets on. What was drawn in place is wiped when it is dropped.
#[derive(Debug)]
pub struct Progress {
    output: Output,
    live: Option<Live>,
    changes: Changes,
}

impl Progress {
    /// Shows nothing yet; afterwards as much as `output` says.
    pub fn new(output: Output) -> Self {
        let live = output.is_live().then(Live::default);
        Self { output, live, changes: Changes::default() }
    }

    /// Shows the Env's present state.
    pub fn update(&mut self, env: &EnvView) {
        match &mut self.live {
            Some(live) => live.draw(&env.vms),
            None => self.changes.since_last(env).iter().for_each(|line| self.output.note(line)),
        }
    }
}

/// Finds what has changed from one state to the next.
#[derive(Debug, Default)]
pub struct Changes {
    last: BTreeMap<VmId, (String, String)>,
}

impl Changes {
    /// A line for each member whose phase, trouble or snapshots under way are others than at the last call.
    pub fn since_last(&mut self, env: &EnvView) -> Vec<String> {
        let mut lines = Vec::new();
        let gone = |id: &VmId| !env.vms.iter().any(|view| view.vm.id == *id);
        self.last.retain(|id, (name, _)| {
            let is_gone = gone(id);
            if is_gone {
                lines.push(format!("{name} gone"));
            }
            !is_gone
        });
        for view in &env.vms {
            let (name, state) = (view.vm.full_name(), state(view));
            if self.last.get(&view.vm.id).is_none_or(|(_, last)| *last != state) {
                lines.push(format!("{name} {state}"));
                self.last.insert(view.vm.id, (name, state));
            }
        }
        lines
    }
}

fn state(view: &VmView) -> String {
    let mut state = match view.trouble() {
        Some(found) => format!("{}: {}", phase(view), trouble(found)),
        None => phase(view),
    };
    for wanted in view.vm.wanted_snapshots() {
        state = format!("{state}, taking snapshot {}", wanted.name);
    }
    state
}

/// Lines that change in place.
#[derive(Debug, Default)]
struct Live {
    area: MultiProgress,
    bars: BTreeMap<VmId, ProgressBar>,
}

impl Live {
    fn draw(&mut self, vms: &[VmView]) {
        self.bars.retain(|id, bar| {
            let stays = vms.iter().any(|view| view.vm.id == *id);
            if !stays {
                bar.finish_and_clear();
                self.area.remove(bar);
            }
            stays
        });
        let mut table = Table::default();
        for view in vms {
            let [name, template, engine, address, _, _] = member_cells(view);
            table.row([name, template, engine, address, state(view)]);
        }
        for (view, line) in vms.iter().zip(table.lines()) {
            let area = &self.area;
            let bar = self.bars.entry(view.vm.id).or_insert_with(|| bar(area));
            if view.is_settled && view.vm.wanted_snapshots().next().is_none() {
                bar.finish_with_message(line);
            } else {
                bar.set_message(line);
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A terminal that is gone needs no wiping.
        let _ = self.area.clear();
    }
}

fn bar(area: &MultiProgress) -> ProgressBar {
    let since = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let ms = u64::try_from(state.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !state.is_finished() {
            // Writing to memory does not fail.
            let _ = write!(text, "{}", format_tenths(ms));
        }
    };
    let style = ProgressStyle::with_template("{msg}  {since}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key("since", since);
    let bar = area.add(ProgressBar::new_spinner().with_style(style));
    bar.enable_steady_tick(TICK);
    bar
}
