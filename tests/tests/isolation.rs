//! A guest is hostile: what it can not reach, whatever it forges, and that it can not.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod isolation {
    use std::net::Ipv4Addr;
    use testkit::{CLIENT, Echo, HOST, Lab};

    /// Where the host itself listens, on all its addresses.
    const SERVICE: u16 = 8022;
    /// Where the outside listens.
    const OUTSIDE: u16 = 7000;
    /// Where the victim listens.
    const INNER: u16 = 7;

    #[test]
    fn an_env_reaches_nothing_of_another_one_or_of_the_host() {
        let Some(lab) = Lab::new("an_env_reaches_nothing_of_another_one_or_of_the_host") else {
            return;
        };
        lab.tt(&["env", "create", "good", "--vm", "v=micro,port=7,port=7/udp"]).good();
        lab.tt(&["env", "create", "evil", "--vm", "e=micro"]).good();
        lab.serve_echo("good/v", INNER);
        lab.bring_helper("evil/e");
        let (service, outside) = (Echo::new(&lab.host, SERVICE), Echo::new(&lab.client, OUTSIDE));
        let attack =
            Attack { lab: &lab, victim: lab.addr("good", "v"), own: lab.addr("evil", "e") };
        attack.what_may_be_reached_is();
        attack.the_victim_is_out_of_reach();
        attack.the_host_is_out_of_reach();
        attack.forged_addresses_do_not_help();
        attack.forged_hardware_addresses_do_not_help();
        attack.the_victims_identity_does_not_help();
        let strangers = service.peers();
        assert!(strangers.is_empty(), "the host's service was reached by {strangers:?}");
        assert!(outside.peers().iter().all(|peer| peer.ip() == HOST), "{:?}", outside.peers());
        // The victim is as well as before, and so is the attacker's own network.
        assert!(lab.client.reaches_tcp((HOST, lab.port("good", "v", "7"))));
        assert!(lab.client.reaches_udp((HOST, lab.port("good", "v", "7/udp"))));
        attack.what_may_be_reached_is();
        lab.assert_clean();
        lab.tt(&["env", "destroy", "good", "evil"]).good();
        lab.finish();
    }

    struct Attack<'a> {
        lab: &'a Lab,
        victim: Ipv4Addr,
        own: Ipv4Addr,
    }

    impl Attack<'_> {
        fn sh(&self, line: &str) -> String {
            self.lab.sh("evil/e", line)
        }

        fn runs(&self, line: &str) -> bool {
            self.lab.exec("evil/e", &["sh", "-c", line]).code == Some(0)
        }

        fn pings(&self, to: Ipv4Addr) -> bool {
            self.runs(&format!("ping -c 2 -W 1 {to}"))
        }

        fn reaches_tcp(&self, to: Ipv4Addr, port: u16) -> bool {
            self.runs(&format!("helper tcp {to} {port}"))
        }

        fn reaches_udp(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> bool {
            self.runs(&format!("helper udp {from} {to} {port}"))
        }

        fn gateway(&self) -> Ipv4Addr {
            self.sh("ip route | awk '/^default/ {print $3}'").parse().unwrap()
        }

        /// Without this the rest would prove nothing.
        fn what_may_be_reached_is(&self) {
            assert!(self.pings(self.gateway()), "its gateway");
            assert!(self.runs(&format!("nslookup e {}", self.gateway())), "its resolver");
            assert!(self.reaches_tcp(CLIENT, OUTSIDE), "the outside");
            assert!(self.reaches_udp(Ipv4Addr::UNSPECIFIED, CLIENT, OUTSIDE), "the outside");
        }

        #[track_caller]
        fn misses_victim(&self, how: &str) {
            assert!(!self.pings(self.victim), "{how}: ping");
            assert!(!self.reaches_tcp(self.victim, INNER), "{how}: TCP");
            assert!(!self.reaches_udp(Ipv4Addr::UNSPECIFIED, self.victim, INNER), "{how}: UDP");
        }

        fn the_victim_is_out_of_reach(&self) {
            self.misses_victim("as it is");
            self.sh(&format!("ip route add {}/32 via {}", self.victim, self.gateway()));
            self.misses_victim("through the gateway");
            self.sh(&format!("ip route del {}/32", self.victim));
            self.sh(&format!("ip route add {}/32 dev eth0", self.victim));
            self.misses_victim("on the link");
            self.sh(&format!("ip route del {}/32", self.victim));
            assert!(!self.runs("nslookup v.good"), "the victim's name");
            // Its public ports are the host's, which a guest does not reach.
            let (tcp, udp) = (self.lab.port("good", "v", "7"), self.lab.port("good", "v", "7/udp"));
            for addr in [HOST, self.gateway()] {
                assert!(!self.reaches_tcp(addr, tcp), "{addr}:{tcp}");
                assert!(!self.reaches_udp(Ipv4Addr::UNSPECIFIED, addr, udp), "{addr}:{udp}/udp");
            }
        }

        fn the_host_is_out_of_reach(&self) {
            for addr in [HOST, self.gateway(), Ipv4Addr::new(169, 254, 169, 254)] {
                assert!(!self.reaches_tcp(addr, SERVICE), "{addr}");
                assert!(!self.reaches_udp(Ipv4Addr::UNSPECIFIED, addr, SERVICE), "{addr}");
            }
            assert!(!self.pings(HOST));
        }

        /// The victim's address, the host's, the gateway's, and nobody's.
        fn forged_addresses_do_not_help(&self) {
            let forged = [self.victim, HOST, CLIENT, Ipv4Addr::new(10, 77, 7, 7)];
            for forged in forged {
                self.sh(&format!("ip addr add {forged}/32 dev eth0"));
                let seen = format!("from {forged}");
                if forged != self.victim {
                    assert!(!self.reaches_udp(forged, self.victim, INNER), "{seen}");
                }
                if forged != HOST {
                    assert!(!self.reaches_udp(forged, HOST, SERVICE), "{seen}");
                }
                if forged != CLIENT {
                    assert!(!self.reaches_udp(forged, CLIENT, OUTSIDE), "{seen}");
                    assert!(!self.runs(&format!("ping -c 1 -W 1 -I {forged} {CLIENT}")), "{seen}");
                }
                // The neighbours are not taken in by its claims either.
                self.runs(&format!("arping -c 2 -w 2 -U -I eth0 {forged}"));
                self.sh(&format!("ip addr del {forged}/32 dev eth0"));
            }
            assert!(self.lab.client.reaches_tcp((HOST, self.lab.port("good", "v", "7"))));
        }

        fn forged_hardware_addresses_do_not_help(&self) {
            let own = self.sh("cat /sys/class/net/eth0/address");
            let victim =
                self.lab.vm("good", "v")["resource"]["mac_addr"].as_str().unwrap().to_owned();
            for mac in [victim.as_str(), "02:00:00:00:00:01"] {
                self.takes(mac);
                assert!(!self.pings(self.gateway()), "{mac}: its gateway");
                assert!(!self.reaches_tcp(CLIENT, OUTSIDE), "{mac}: the outside");
                self.misses_victim(mac);
            }
            self.takes(&own);
        }

        fn the_victims_identity_does_not_help(&self) {
            let own = self.sh("cat /sys/class/net/eth0/address");
            let victim =
                self.lab.vm("good", "v")["resource"]["mac_addr"].as_str().unwrap().to_owned();
            let prefix = self.sh("ip -4 addr show eth0 | awk '/inet/ {print $2}'");
            let (_, length) = prefix.split_once('/').unwrap();
            self.takes(&victim);
            self.sh(&format!(
                "ip addr flush dev eth0; ip addr add {}/{length} dev eth0",
                self.victim
            ));
            self.sh(&format!(
                "ip route replace default via {} dev eth0 onlink",
                self.gateway_of(self.own)
            ));
            assert!(!self.reaches_tcp(CLIENT, OUTSIDE), "the outside, as the victim");
            assert!(!self.reaches_tcp(HOST, SERVICE), "the host, as the victim");
            assert!(self.lab.client.reaches_tcp((HOST, self.lab.port("good", "v", "7"))));
            self.sh(&format!("ip addr flush dev eth0; ip addr add {}/{length} dev eth0", self.own));
            self.takes(&own);
        }

        /// Changes its hardware address; what it knew of its way out is set again.
        fn takes(&self, mac: &str) {
            let gateway = self.gateway_of(self.own);
            self.sh(&format!(
                "ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up && \
                 ip route replace default via {gateway} dev eth0 onlink"
            ));
        }

        /// The first address of the range.
        fn gateway_of(&self, addr: Ipv4Addr) -> Ipv4Addr {
            let [first, ..] = addr.octets();
            Ipv4Addr::new(first, 0, 0, 1)
        }
    }
}
