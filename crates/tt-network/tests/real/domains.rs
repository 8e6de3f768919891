//! Allow lists of names: what a server outside answers to a member is open to that member, for as long as the
//! answer lives, and nothing else is.

use crate::lab::{
    ARRIVES, CLIENT, Echo, GATEWAY, Guest, HOST, Lab, NEVER, Space, UPSTREAM, echoes, is_cut, run,
};
use crate::names::{Reply, ask, data};
use crate::six::{self, CLIENT_SIX, HOST_SIX, lead_out};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tt_model::{EnvId, six as addresses};
use tt_network::{EnvNames, Network};

/// Other addresses of the client's.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const NOTHING: Reply = Some((ResponseCode::NXDomain, Vec::new()));

/// Name to addresses, or to another name.
type Table = Arc<Mutex<BTreeMap<String, Result<Vec<IpAddr>, String>>>>;

/// A server that knows a table and counts what it is asked.
struct Server {
    table: Table,
    asked: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Space) -> Self {
        let socket = host.udp(UPSTREAM.parse::<SocketAddr>().unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (table, asked) = (Table::default(), Arc::new(AtomicUsize::new(0)));
        let is_over = Arc::new(AtomicBool::new(false));
        let (known, count, over) = (table.clone(), asked.clone(), is_over.clone());
        let thread = thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                serve(&socket, &known, &count);
            }
        });
        Self { table, asked, is_over, thread: Some(thread) }
    }

    fn set<A: Copy + Into<IpAddr>>(&self, name: &str, addrs: &[A]) {
        let addrs = addrs.iter().map(|addr| (*addr).into()).collect();
        self.table.lock().unwrap().insert(name.to_owned(), Ok(addrs));
    }

    fn alias(&self, name: &str, to: &str) {
        self.table.lock().unwrap().insert(name.to_owned(), Err(to.to_owned()));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(socket: &UdpSocket, table: &Table, asked: &AtomicUsize) {
    let mut buffer = [0; 2048];
    let Ok((length, from)) = socket.recv_from(&mut buffer) else { return };
    asked.fetch_add(1, Ordering::SeqCst);
    let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
    let mut owner = message.queries[0].name().to_ascii();
    let table = table.lock().unwrap();
    let record =
        |owner: &str, data| Record::from_rdata(Name::from_ascii(owner).unwrap(), 300, data);
    while let Some(Err(to)) = table.get(&owner) {
        let data = RData::CNAME(CNAME(Name::from_ascii(to).unwrap()));
        message.add_answer(record(&owner, data));
        owner = to.clone();
    }
    match table.get(&owner) {
        Some(Ok(addrs)) => {
            let data = addrs.iter().map(|addr| match addr {
                IpAddr::V4(addr) => RData::A(A(*addr)),
                IpAddr::V6(addr) => RData::AAAA(AAAA(*addr)),
            });
            let kind = message.queries[0].query_type();
            let data = data.filter(|data| data.record_type() == kind);
            message.add_answers(data.map(|data| record(&owner, data)));
        }
        _ => message.metadata.response_code = ResponseCode::NXDomain,
    }
    let _ = socket.send_to(&message.to_vec().unwrap(), from);
}

fn allow(lab: &Lab, guest: &mut Guest, rules: &[&str]) {
    guest.vm.state.net_allowlist = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    lab.net.set_net(&guest.vm).unwrap();
}

fn address(space: &Space, name: &str) -> Reply {
    ask(space, name, RecordType::A)
}

/// Whether connections come about to exactly these of the places.
fn reaches_only<const N: usize>(
    space: &Space,
    places: [(Ipv4Addr, u16); N],
    wanted: [bool; N],
) -> bool {
    places.into_iter().zip(wanted).all(|(to, is_wanted)| {
        space.connect(to, if is_wanted { ARRIVES } else { NEVER }).is_ok() == is_wanted
    })
}

fn add_addresses(space: &Space, addrs: &[Ipv4Addr]) {
    addrs.iter().for_each(|addr| space.ip(&format!("addr add {addr}/32 dev eth0")));
}

#[test]
fn a_name_opens_what_it_stands_for_once_it_was_asked_for() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        add_addresses(&lab.client, &[SECOND]);
        let (mut guest, friend) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let names = EnvNames {
            env_name: "env".into(),
            members: vec![("friend".into(), friend.addr())],
            ..EnvNames::default()
        };
        lab.net.set_names(EnvId(1), &names).unwrap();
        let server = Server::start(&lab.host);
        server.alias("www.example.org.", "cdn.example.net.");
        server.set("cdn.example.net.", &[CLIENT]);
        server.set("a.b.shop.example.", &[SECOND]);
        let _echoes = [Echo::new(&lab.client, 7), Echo::new(&lab.client, 8)];
        let _near = [&friend, &guest].map(|guest| Echo::new(&guest.space, 80));
        allow(lab, &mut guest, &["www.example.org", "*.shop.example:7"]);
        assert!(guest.space.misses((CLIENT, 7)), "nobody asked");
        // The neighbour's questions open nothing to this one.
        assert_eq!(address(&friend.space, "www.example.org.").unwrap().1.len(), 2);
        assert!(guest.space.misses((CLIENT, 7)) && friend.space.reaches((CLIENT, 7)));
        let asked = server.asked();
        for name in ["cdn.example.net.", "shop.example.", "stolen-data.evil.example.", "com."] {
            assert_eq!(address(&guest.space, name), NOTHING, "{name}");
        }
        assert_eq!(ask(&guest.space, "4.3.2.1.in-addr.arpa.", RecordType::PTR), NOTHING);
        assert_eq!(server.asked(), asked, "nothing leaves in questions");
        assert_eq!(address(&guest.space, "friend."), data(&friend.addr().to_string()));
        assert_eq!(address(&guest.space, "WWW.example.org.").unwrap().1.len(), 2);
        assert_eq!(server.asked(), asked, "from what is kept");
        let all = [(CLIENT, 7), (CLIENT, 8), (SECOND, 7), (SECOND, 8)];
        assert!(reaches_only(&guest.space, all, [true, true, false, false]));
        assert!(guest.space.reaches_udp((CLIENT, 7)) && guest.space.reaches((CLIENT, 7)));
        assert_eq!(address(&guest.space, "a.b.shop.example."), data(&SECOND.to_string()));
        assert!(reaches_only(&guest.space, all, [true, true, true, false]));
        assert!(!guest.space.reaches_udp_soon((SECOND, 7)), "another protocol");
        assert!(lab.client.reaches((HOST, guest.tcp())), "replies pass");
        assert!(guest.space.reaches((friend.addr(), 80)), "members stay reachable");
        lab.net.deny_outgoing(&guest.vm).unwrap();
        assert!(reaches_only(&guest.space, all, [false; 4]));
        assert_eq!(
            address(&guest.space, "www.example.org."),
            Some((ResponseCode::Refused, vec![]))
        );
        lab.net.allow_outgoing(&guest.vm).unwrap();
        guest.vm.state.net_blacklist = vec![CLIENT.into()];
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.misses((CLIENT, 7)), "what is blocked stays so");
    });
}

#[test]
fn connections_outlive_answers_and_end_with_their_rule() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        add_addresses(&lab.client, &[SECOND]);
        let mut guest = lab.guest(EnvId(1), 0);
        let server = Server::start(&lab.host);
        server.set("a.example.", &[CLIENT]);
        server.set("b.example.", &[SECOND]);
        let _echo = Echo::new(&lab.client, 7);
        allow(lab, &mut guest, &["a.example", "b.example:7"]);
        for name in ["a.example.", "b.example."] {
            address(&guest.space, name).unwrap();
        }
        let (mut of_a, mut of_b) = (guest.space.open((CLIENT, 7)), guest.space.open((SECOND, 7)));
        let inside = lab.env(EnvId(1));
        let map = |name: &str| inside.run(|| run("nft", &format!("list map inet tt {name}")));
        assert!(map("named").contains(&format!("{} . {CLIENT} timeout 5m5s", guest.addr())));
        assert!(map("named_ports").contains("timeout 5m5s"));
        // The next daemon knows the rules and what is open before it is told of the member.
        lab.restart();
        assert_eq!(address(&guest.space, "c.example."), NOTHING);
        assert!(guest.space.reaches((CLIENT, 7)) && guest.space.reaches((SECOND, 7)));
        // As it is when the answers are out of date.
        lab.die();
        lab.env(EnvId(1)).run(|| {
            run("nft", "flush map inet tt named");
            run("nft", "flush map inet tt named_ports");
        });
        lab.net.init().unwrap();
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.misses((CLIENT, 7)) && guest.space.misses((SECOND, 7)));
        assert!(echoes(&mut of_a) && echoes(&mut of_b), "who is connected stays so");
        assert_eq!(address(&guest.space, "a.example."), data(&CLIENT.to_string()));
        assert!(guest.space.reaches((CLIENT, 7)));
        // Another rule goes: nothing of the first one's changes.
        allow(lab, &mut guest, &["a.example"]);
        assert!(is_cut(&mut of_b) && echoes(&mut of_a));
        // Somebody flushes the rules in there: what was open is, once they are back.
        lab.env(EnvId(1)).run(|| run("nft", "flush ruleset"));
        lab.net.set_net(&guest.vm).unwrap();
        assert!(guest.space.reaches((CLIENT, 7)));
        allow(lab, &mut guest, &["b.example"]);
        assert!(is_cut(&mut of_a) && guest.space.misses((CLIENT, 7)));
        assert!(!map("named").contains("elements"), "{}", map("named"));
        allow(lab, &mut guest, &[]);
        assert!(guest.space.reaches((CLIENT, 7)), "no list at all");
        assert_eq!(address(&guest.space, "a.example."), data(&CLIENT.to_string()));
    });
}

#[test]
fn a_hostile_name_server_opens_nothing_near() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        add_addresses(&lab.client, &[METADATA, PRIVATE]);
        let (mut guest, other) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let _services = [&lab.host, &lab.client, &other.space].map(|space| Echo::new(space, 80));
        let inside = lab.env(EnvId(1));
        let _own = Echo::new(&inside, 80);
        let server = Server::start(&lab.host);
        let near = [GATEWAY, other.addr(), Ipv4Addr::LOCALHOST, METADATA, PRIVATE, HOST];
        server.set("evil.example.", &near);
        server.set("good.example.", &[CLIENT]);
        allow(lab, &mut guest, &["*.example", "evil.example", "good.example"]);
        assert_eq!(address(&guest.space, "evil.example.").unwrap().1.len(), near.len());
        assert_eq!(address(&guest.space, "good.example."), data(&CLIENT.to_string()));
        assert!(guest.space.reaches((CLIENT, 80)), "the way is open");
        let places = near.map(|addr| (addr, 80));
        assert!(reaches_only(&guest.space, places, [false; 6]));
        // Who means the private network says so.
        allow(lab, &mut guest, &["evil.example", "192.168.7.0/24"]);
        let private = [false, false, false, false, true, false];
        assert!(reaches_only(&guest.space, places, private));
    });
}

/// As by IPv4; and what is not open is refused at once.
#[test]
fn a_name_opens_its_ipv6_addresses_too() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        let (mut guest, other) = (six::guest(lab, EnvId(1), 0), six::guest(lab, EnvId(2), 0));
        let _echoes = [7, 8].map(|port| six::echo(&lab.client, port));
        let _near = [&lab.host, &other.space].map(|space| six::echo(space, 7));
        let server = Server::start(&lab.host);
        for name in ["a.example.", "b.example."] {
            server.set(name, &[CLIENT_SIX]);
        }
        let near = [HOST_SIX, addresses::HOST_END, six::addr(&other)];
        server.set("evil.example.", &near);
        let places = [(CLIENT_SIX, 7), (CLIENT_SIX, 8)];
        let opens = |guest: &Guest, name: &str, wanted: [bool; 2]| {
            ask(&guest.space, name, RecordType::AAAA).unwrap();
            assert_eq!(places.map(|to| guest.space.connect(to, ARRIVES).is_ok()), wanted, "{name}");
        };
        allow(lab, &mut guest, &["a.example", "b.example:7", "evil.example"]);
        opens(&guest, "c.example.", [false, false]);
        opens(&guest, "evil.example.", [false, false]);
        for to in near.map(|addr| (addr, 7)) {
            assert!(guest.space.connect(to, NEVER).is_err(), "{to:?}");
        }
        opens(&guest, "b.example.", [true, false]);
        let mut of_b = guest.space.open(places[0]);
        opens(&guest, "a.example.", [true, true]);
        let mut of_a = guest.space.open(places[1]);
        // The next daemon knows the rules and what is open before it is told of the member.
        lab.restart();
        assert_eq!(places.map(|to| guest.space.reaches(to)), [true, true]);
        allow(lab, &mut guest, &["a.example"]);
        assert!(echoes(&mut of_b) && echoes(&mut of_a), "the other name leads there, too");
        assert_eq!(places.map(|to| guest.space.reaches(to)), [true, true]);
        allow(lab, &mut guest, &["b.example:7"]);
        assert!(is_cut(&mut of_a) && is_cut(&mut of_b));
        assert_eq!(places.map(|to| guest.space.connect(to, ARRIVES).is_ok()), [false, false]);
    });
}
