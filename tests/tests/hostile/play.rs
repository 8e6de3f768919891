//! The play: frames, tricks, floods.

use super::scene::{MARK, Observer, Player, guests};
use super::tricks::{OUTSIDE, tricks};
use testkit::hostile::{Scene, cases, floods};
use testkit::{CLIENT, Lab, PATIENCE, within};

#[test]
fn a_guest_that_is_root_gets_nowhere() {
    let Some(lab) = Lab::new("a_guest_that_is_root_gets_nowhere") else {
        return;
    };
    let scene = guests(&lab);
    let observer = Observer::new(&lab);
    // What it says by itself, as to groups, might be stopped and counted, and would be taken for what is tried.
    lab.sh("evil/e", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 2>/dev/null; true");
    what_may_be_reached_is(&lab, &scene);
    observer.all_go_on("before all");
    observer.watches_another_env();
    play_frames(&lab, &scene, &observer);
    play_tricks(&lab, &scene, &observer);
    what_may_be_reached_is(&lab, &scene);
    play_floods(&lab, &scene, &observer);
    let shown = lab.tt(&["vm", "show", "evil/e"]).good();
    let dropped = shown.lines().find(|line| line.contains("dropped")).unwrap();
    assert!(!dropped.contains(" 0 "), "{dropped}");
    lab.assert_clean();
    lab.tt(&["env", "destroy", "good", "evil"]).good();
    lab.finish();
}

/// Without this the rest would prove nothing.
fn what_may_be_reached_is(lab: &Lab, scene: &Scene) {
    let gateway = scene.gateway.addr;
    lab.sh("evil/e", &format!("ping -c 1 -W 5 {gateway} && nslookup e {gateway}"));
    lab.sh(
        "evil/e",
        &format!("helper tcp {CLIENT} {OUTSIDE} && helper udp 0.0.0.0 {CLIENT} {OUTSIDE}"),
    );
    let foreign = lab.exec("evil/e", &["nslookup", "v.good"]);
    assert_ne!(foreign.code, Some(0), "a name of another env: {}", foreign.out);
}

fn play_frames(lab: &Lab, scene: &Scene, observer: &Observer<'_>) {
    let mut player = Player::new(lab);
    observer.sees_the_honest(&mut player, scene, "<honest>");
    let mut uncounted = Vec::new();
    for case in cases(scene) {
        let before = observer.stopped();
        let sent = player.play(1, &case.frames);
        assert_eq!(sent, case.frames.len() as u64, "{}", case.mark());
        // What left the guest is handled by its machine's program a moment later.
        let is_counted = || observer.stopped() > before;
        if case.stop.is_counted() && !within(PATIENCE, is_counted) {
            uncounted.push(case.mark());
        }
        observer.saw_nothing(&case.mark());
    }
    assert_eq!(uncounted, Vec::<String>::new(), "not counted");
    observer.sees_the_honest(&mut player, scene, "<honest again>");
    observer.saw_nothing("all frames");
    observer.all_go_on("after all frames");
}

fn play_tricks(lab: &Lab, scene: &Scene, observer: &Observer<'_>) {
    let prefix = lab.sh("evil/e", "ip -4 addr show eth0 | awk '/inet/ {print $2}'");
    let (_, prefix) = prefix.split_once('/').unwrap();
    let mac = scene.me.mac.to_string();
    for trick in tricks(scene, prefix.parse().unwrap(), &mac) {
        let before = observer.stopped();
        let run = lab.exec("evil/e", &["sh", "-c", &trick.line(&format!("{MARK} trick>"))]);
        let said: Vec<_> = run.out.lines().collect();
        assert_eq!(said, ["set", "undone"], "{}: {run:?}", trick.what);
        assert!(observer.stopped() > before, "{}: not counted", trick.what);
        observer.saw_nothing(trick.what);
    }
    observer.all_go_on("after all tricks");
}

fn play_floods(lab: &Lab, scene: &Scene, observer: &Observer<'_>) {
    let mut player = Player::new(lab);
    for flood in floods(scene) {
        let before = observer.stopped();
        let frames = &flood.frames;
        let is_one = frames.iter().all(|frame| *frame == frames[0]);
        let (often, frames) =
            if is_one { (frames.len() as u32, &frames[..1]) } else { (1, &frames[..]) };
        let sent = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| player.play(often, frames));
            observer.all_go_on(flood.what);
            flooding.join().unwrap()
        });
        assert!(sent > 1000, "{}: only {sent} frames left the guest", flood.what);
        if flood.stop.is_some() {
            assert!(observer.stopped() > before, "{}: not counted", flood.what);
        }
    }
    observer.saw_nothing("all floods");
    observer.all_go_on("after all floods");
}
