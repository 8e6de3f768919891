//! Hosts that know each other, each with a daemon of its own: their flat guests reach each other over the underlay, and a
//! plain client reaches all of them through any host, whatever becomes of one of them.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod sites {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Duration;
    use testkit::{Lab, Setup, Space, eventually, is_alive};
    use tt_model::{Host, HostId};
    use tt_store::sqlite::SqliteKv;
    use tt_store::tables::{Change, Tables};

    const NAME: &str = "daemons_of_one_underlay_lead_to_each_others_guests";
    /// Where guests listen.
    const INNER: u16 = 7;
    /// The last byte of the client's address on the underlay.
    const CLIENT: u8 = 200;
    /// Ids that hosts have in the stores of others: none of them hands out so many.
    const FIRST_ID: u64 = 1_000_000;
    /// TCP tries again after 0.2 s, 0.4 s and so on.
    const HEALS: Duration = Duration::from_secs(60);

    #[test]
    fn daemons_of_one_underlay_lead_to_each_others_guests() {
        let Some(mut world) = World::new() else { return };
        world.meet(None);
        world.create(0);
        world.create(1);
        world.create(2);
        world.all_reach_all();
        one_is_cut_off_and_comes_back(&world);
        one_goes_and_another_one_takes_its_block(&mut world);
        world.finish();
    }

    fn one_is_cut_off_and_comes_back(world: &World) {
        let [first, cut, last] = [0, 1, 2].map(|at| world.addr(at));
        let mut open = world.client.connect((last, INNER)).unwrap();
        assert!(is_alive(&mut open));
        world.underlay.ip("link set host2 down");
        assert!(!world.reaches(0, cut) && !world.reaches(1, last), "it is cut off");
        assert!(world.reaches(0, last) && world.reaches(2, first), "the others go on");
        assert!(is_alive(&mut open), "connections do, too");
        world.underlay.ip("link set host2 up");
        eventually("it is back", HEALS, || {
            (!world.reaches(0, cut)).then(|| "it is not reached".into())
        });
        world.all_reach_all();
    }

    fn one_goes_and_another_one_takes_its_block(world: &mut World) {
        let [first, gone, last] = [0, 1, 2].map(|at| world.addr(at));
        let mut open = world.client.connect((last, INNER)).unwrap();
        world.meet(Some(1));
        assert!(is_alive(&mut open), "the daemons' restart cuts nothing");
        assert!(!world.reaches(0, gone) && !world.reaches(1, first), "nobody knows it any more");
        assert!(world.reaches(0, last) && world.reaches(2, first), "the others go on");
        let left = world.labs.remove(1);
        left.tt(&["env", "destroy", "site"]).good();
        left.finish();
        let heir = world.host(2, 20).unwrap();
        world.labs.insert(1, heir);
        world.meet(None);
        world.create(1);
        world.all_reach_all();
        assert!(is_alive(&mut open));
    }

    /// The underlay, a client on it, and hosts.
    struct World {
        underlay: Space,
        client: Space,
        labs: Vec<Lab>,
    }

    impl World {
        fn new() -> Option<Self> {
            let (underlay, client) = (Space::new().unwrap(), Space::new().unwrap());
            underlay.ip("link add br0 type bridge forward_delay 0");
            underlay.ip("link set br0 up");
            let mut world = Self { underlay, client, labs: Vec::new() };
            world.join(&world.client, "client", CLIENT);
            for number in 1..=3 {
                let lab = world.host(number, number)?;
                world.labs.push(lab);
            }
            // All members of all hosts, through one of them.
            world.client.ip("route add 10.0.0.0/8 via 198.51.100.1");
            Some(world)
        }

        fn join(&self, space: &Space, port: &str, last: u8) {
            let space_path = space.path();
            self.underlay
                .ip(&format!("link add {port} type veth peer name eth0 netns {space_path}"));
            self.underlay.ip(&format!("link set {port} master br0 up"));
            space.ip(&format!("addr add 198.51.100.{last}/24 dev eth0"));
            space.ip("link set eth0 up");
        }

        /// A host with a daemon that hands out that block, at the address that ends so.
        fn host(&self, number: u8, last: u8) -> Option<Lab> {
            let space = Space::new().unwrap();
            self.join(&space, &format!("host{last}"), last);
            space.ip(&format!("route add default via 198.51.100.{CLIENT}"));
            let setup = Setup::new(NAME).within(&space, &self.client);
            let setup = setup.top(&format!("block = \"10.{number}.0.0/16\""));
            setup.top(&format!("underlay_addr = \"198.51.100.{last}\"")).start()
        }

        /// Writes into every store where the other hosts are, nowhere for one that goes. Nobody else may write there, so the
        /// daemons end before and others go on.
        fn meet(&mut self, gone: Option<usize>) {
            self.labs.iter_mut().for_each(Lab::terminate);
            let stores: Vec<Tables> = self.labs.iter().map(store).collect();
            let hosts: Vec<Host> =
                stores.iter().map(|store| store.hosts().unwrap()[0].value.clone()).collect();
            for (own, store) in stores.iter().enumerate() {
                for (at, host) in hosts.iter().enumerate().filter(|(at, _)| *at != own) {
                    let is_known = gone.is_none_or(|gone| gone != at && gone != own);
                    let known = Host {
                        id: HostId(FIRST_ID + at as u64),
                        underlay_addr: host.underlay_addr.filter(|_| is_known),
                        ..host.clone()
                    };
                    store.commit(&Change::new().host(&known).unwrap()).unwrap();
                }
            }
            drop(stores);
            self.labs.iter_mut().for_each(Lab::restart);
        }

        /// A flat guest with a server.
        fn create(&self, at: usize) {
            self.labs[at].tt(&["env", "create", "site", "--vm", "v=micro,net=flat"]).good();
            self.labs[at].serve_echo("site/v", INNER);
        }

        fn addr(&self, at: usize) -> Ipv4Addr {
            self.labs[at].addr("site", "v")
        }

        /// Whether the guest of a host reaches an address.
        fn reaches(&self, at: usize, to: Ipv4Addr) -> bool {
            let words = ["helper", "tcp", &to.to_string(), &INNER.to_string()];
            self.labs[at].exec("site/v", &words).code == Some(0)
        }

        /// Guests each other, with packets that fill the link, too, and the client all of them.
        fn all_reach_all(&self) {
            for to in 0..self.labs.len() {
                let addr = self.addr(to);
                for from in (0..self.labs.len()).filter(|from| *from != to) {
                    eventually(&format!("{from} reaches {to}"), HEALS, || {
                        (!self.reaches(from, addr)).then(|| "it does not".into())
                    });
                    self.labs[from].sh("site/v", &format!("ping -c 1 -W 10 -s 2800 {addr}"));
                }
                assert!(self.client.reaches_tcp((addr, INNER)), "the client reaches {to}");
                assert!(self.client.reaches_udp((addr, INNER)), "the client reaches {to}");
            }
        }

        fn finish(self) {
            for lab in self.labs {
                lab.tt(&["env", "destroy", "site"]).good();
                lab.finish();
            }
        }
    }

    fn store(lab: &Lab) -> Tables {
        Tables::new(Arc::new(SqliteKv::open(&lab.data().join("store")).unwrap()))
    }
}
