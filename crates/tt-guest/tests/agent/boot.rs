//! The agent as the first process of a real guest: initramfs, root disk, set-up, programs, a host that goes and comes,
//! and the end. It needs a kernel and a static agent, which are named by the environment:
//! `TT_BOOT_KERNEL` (a bzImage or PVH vmlinux), `TT_BOOT_MODULES` (the kernel's `lib/modules/VERSION`) and
//! `TT_BOOT_AGENT` (the agent, built static); `qemu-system-x86_64`, `mkfs.ext4` and a static `/bin/busybox` besides.

#![expect(clippy::print_stdout, reason = "what a guest's steps take is read by people")]

mod guest;

use std::time::{Duration, Instant};

use crate::client::{Client, exec, pack, wait_until};
use guest::{Guest, Parts};
use tt_guest::frame::{self, Kind};
use tt_guest::message::{ByeReason, Exec, GuestMessage, HostMessage, NetworkSetup, Setup, Tty};
use tt_guest::tar::{Limits, Unpacker};

/// Pause before something is typed again.
const RETYPE: Duration = Duration::from_millis(500);
const MAC: &str = "82:17:0d:00:00:02";
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

fn setup() -> Setup {
    Setup {
        hostname: "web".to_owned(),
        network: Some(NetworkSetup {
            mac: MAC.to_owned(),
            address: [10, 0, 0, 2].into(),
            prefix_len: 24,
            gateway: [10, 0, 0, 1].into(),
            mtu: 1400,
            six: None,
        }),
        dns: vec![[10, 0, 0, 1].into()],
        hosts: vec![("db".to_owned(), [10, 0, 0, 3].into())],
        machine_id: Some(MACHINE_ID.to_owned()),
        ssh_keys: vec!["ssh-ed25519 A a".to_owned()],
        entropy: Some("5a".repeat(32)),
    }
}

#[test]
fn a_guest_boots_is_set_up_used_and_ends() {
    let Some(parts) = Parts::from_environment() else {
        println!(
            "SKIPPED a_guest_boots_is_set_up_used_and_ends: TT_BOOT_KERNEL, TT_BOOT_MODULES or TT_BOOT_AGENT is not set"
        );
        return;
    };
    let mut guest = Guest::boot(&parts, MAC);
    let began = Instant::now();
    // The host speaks before the guest has booted.
    let mut client = guest.client();
    println!("session {:?} after the host said hello", began.elapsed());
    check_setup(&mut client);
    check_use(&mut client, &guest);
    check_first_process(&mut client);
    check_hosts_come_and_go(&mut guest, client);
    let mut client = guest.client();
    check_console(&mut guest, &mut client);
    client.send(&HostMessage::Shutdown { reboot: false });
    let began = Instant::now();
    while client.message() != (GuestMessage::Bye { reason: ByeReason::Poweroff }) {}
    guest.wait_off();
    println!("off {:?} after it was asked for", began.elapsed());
    assert!(guest.disk_is_clean(), "the root file system was left in order");
}

#[test]
fn a_guest_restarts_and_asks_for_a_new_session() {
    let Some(parts) = Parts::from_environment() else {
        println!(
            "SKIPPED a_guest_restarts_and_asks_for_a_new_session: TT_BOOT_KERNEL, TT_BOOT_MODULES or TT_BOOT_AGENT is not set"
        );
        return;
    };
    let mut guest = Guest::boot(&parts, MAC);
    let mut client = guest.client();
    assert_eq!(
        client.shell(1, "echo kept > /root/kept; cat /etc/tt-started").code,
        Some(1),
        "the start-up program waits"
    );
    client.send(&HostMessage::Shutdown { reboot: true });
    while client.message() != (GuestMessage::Bye { reason: ByeReason::Reboot }) {}
    let began = Instant::now();
    while !matches!(client.message(), GuestMessage::Ready { .. }) {}
    println!("back {:?} after it said that it restarts", began.elapsed());
    client.hello();
    assert_eq!(client.shell(2, "cat /root/kept").text(), "kept\n");
    // What nobody has open yet forgets that it was pressed.
    wait_until("an eye on the button", || {
        client.shell(9, "ls -l /proc/1/fd | grep -q /dev/input/").code == Some(0)
    });
    guest.press_power_button();
    while client.message() != (GuestMessage::Bye { reason: ByeReason::Poweroff }) {}
    guest.wait_off();
}

fn check_setup(client: &mut Client) {
    for round in 0..2 {
        let began = Instant::now();
        client.send(&HostMessage::Setup(setup()));
        let GuestMessage::SetupDone { facts } = client.message() else {
            panic!("the set-up failed")
        };
        println!("set-up {round} took {:?}: {facts:?}", began.elapsed());
        assert_eq!(facts.address, Some([10, 0, 0, 2].into()));
        assert_eq!(facts.disk_mb, guest::DISK_MB);
    }
    let script = "hostname; cat /etc/machine-id /etc/resolv.conf; ip -4 -o addr show dev eth0 | grep -o '10[^ ]*'; \
        ip route; cat /sys/class/net/eth0/mtu; grep -c ' ' /etc/hosts; cat /sys/class/net/lo/flags";
    let seen = client.shell(1, script).text();
    let expected = format!(
        "web\n{MACHINE_ID}\nnameserver 10.0.0.1\n10.0.0.2/24\n10.0.0.255\ndefault via 10.0.0.1 dev eth0 \n\
         10.0.0.0/24 dev eth0 scope link  src 10.0.0.2 \n1400\n4\n0x9\n"
    );
    assert_eq!(seen, expected);
    client.send(&HostMessage::SetClock { time_unix_ns: 1_000_000_000_000_000_000 });
    assert_eq!(client.run(6, &["date", "+%s"]).text().trim().get(..9), Some("100000000"));
    client.hello();
    let clock: u64 = client.run(2, &["date", "+%s"]).text().trim().parse().unwrap_or_default();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    assert!(clock.abs_diff(now) < 5, "the clock says {clock}, not {now}");
    // A wrong address, route and name are put right.
    client.shell(3, "ip addr add 10.9.9.9/8 dev eth0; ip route replace default via 10.0.0.7; hostname wrong; ip addr del 10.0.0.2/24 dev eth0");
    client.send(&HostMessage::Setup(setup()));
    while !matches!(client.message(), GuestMessage::SetupDone { .. }) {}
    assert_eq!(client.shell(4, script).text(), expected);
    let mut none = Setup { machine_id: None, ..setup() };
    client.send(&HostMessage::Setup(none.clone()));
    while !matches!(client.message(), GuestMessage::SetupDone { .. }) {}
    assert_eq!(client.shell(5, "wc -c < /etc/machine-id").text(), "0\n");
    none.network =
        none.network.map(|network| NetworkSetup { mac: "82:17:0d:ff:ff:ff".to_owned(), ..network });
    client.send(&HostMessage::Setup(none));
    assert!(
        matches!(client.message(), GuestMessage::SetupFailed { what, .. } if what == "network")
    );
}

fn check_use(client: &mut Client, guest: &Guest) {
    let big = vec![7; 3_000_000];
    let began = Instant::now();
    client.send(&HostMessage::Exec(exec(10, &["cat"])));
    assert!(client.follow(10, &big).stdout == big);
    println!("3 MB there and back in {:?}", began.elapsed());
    let began = Instant::now();
    for stream in 100..120 {
        assert_eq!(client.run(stream, &["true"]).code, Some(0));
    }
    println!("a program takes {:?}", began.elapsed() / 20);
    let tty = Some(Tty { rows: 7, cols: 9, term: "vt100".to_owned() });
    client.send(&HostMessage::Exec(Exec { tty, ..exec(11, &["sh", "-c", "stty size; tty"]) }));
    assert_eq!(client.follow(11, &[]).text(), "7 9\r\n/dev/pts/0\r\n");
    let from = guest.scratch().join("copied");
    std::fs::write(&from, &big).unwrap_or_default();
    client.send(&HostMessage::CopyIn {
        stream: 12,
        path: "/root/in".to_owned(),
        mode: Some(0o711),
    });
    assert_eq!(client.follow(12, &pack(&from)).code, Some(0));
    assert_eq!(client.shell(13, "stat -c '%a %s' /root/in").text(), "711 3000000\n");
    client.send(&HostMessage::CopyOut { stream: 14, path: "/root/in".to_owned() });
    let archive = client.follow(14, &[]).stdout;
    let back = Unpacker::new(guest.scratch(), None, None, Limits::NONE);
    assert!(back.and_then(|mut back| back.push(&archive).and_then(|()| back.finish())).is_ok());
    assert!(std::fs::read(guest.scratch().join("in")).unwrap_or_default() == big);
}

fn check_first_process(client: &mut Client) {
    let seen = client
        .shell(
            20,
            "cat /proc/1/comm; id -u; cat /proc/mounts | cut -d' ' -f2 | sort | tr '\\n' ' '",
        )
        .text();
    assert_eq!(seen, "tt-guest\n0\n/ /dev /dev/pts /dev/shm /proc /run /sys /tmp ");
    assert_eq!(client.shell(21, "sleep 5 & sleep 6 & (true & true) & exit 0").code, Some(0));
    let zombies = "sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(client.shell(22, zombies).text(), "0\n", "orphans are reaped");
    wait_until("the start-up program's trace", || {
        client.shell(23, "cat /run/tt-started").text() == "started\n"
    });
}

fn check_hosts_come_and_go(guest: &mut Guest, mut client: Client) {
    client.send(&HostMessage::Exec(exec(30, &["sleep", "1000"])));
    client.send(&HostMessage::Exec(exec(31, &["cat"])));
    client.send(&HostMessage::Exec(exec(32, &["yes"])));
    client.wait_started(32);
    let half =
        frame::encode(31, Kind::Stdin, &[b'x'; 60_000]).map(|frame| frame[..31_000].to_vec());
    client.raw(&half.unwrap_or_default());
    drop(client);
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    let mut client = guest.client();
    println!("a new host was heard after {:?}", began.elapsed());
    let busy = "for i in 1 2 3 4 5 6 7 8 9 10; do pgrep -x 'sleep|cat|yes' -a | grep -v ' [056]$' | grep -q . || break; sleep 0.1; done; \
        pgrep -x 'cat|yes' | wc -l";
    assert_eq!(client.shell(1, busy).text(), "0\n", "the old session's programs were ended");
    for round in 0..20 {
        drop(client);
        client = guest.client();
        assert_eq!(client.shell(1, &format!("echo {round}")).text(), format!("{round}\n"));
    }
}

fn check_console(guest: &mut Guest, client: &mut Client) {
    guest.type_on_console("tty; echo from-$((40+2)); exit\n");
    wait_until("the shell's answer", || guest.console().contains("from-42"));
    // What is typed between two shells is lost with the first one's terminal session: typed until it is heard.
    let mut typed = Instant::now() - RETYPE;
    wait_until("the next shell's answer", || {
        if typed.elapsed() >= RETYPE {
            typed = Instant::now();
            guest.type_on_console("echo again-$((40+3))\n");
        }
        guest.console().contains("again-43")
    });
    assert!(guest.console().contains("/dev/ttyS0"), "{}", guest.console());
    assert_eq!(client.shell(40, "true").code, Some(0));
}
