//! Members that join and leave an Env that runs.

use std::path::Path;
use testkit::{HOST, Lab};

#[test]
fn members_join_and_leave() {
    let Some(lab) = Lab::new("members_join_and_leave") else { return };
    lab.tt(&["env", "create", "club", "--vm", "a=micro,port=7"]).good();
    lab.serve_echo("club/a", 7);
    let boot = lab.boot_id("club/a");
    lab.tt(&["snapshot", "create", "club", "alone"]).good();
    one_joins(&lab);
    an_env_goes_back_only_as_a_whole(&lab);
    one_leaves(&lab);
    assert_eq!(lab.boot_id("club/a"), boot);
    assert!(lab.client.reaches_tcp((HOST, lab.port("club", "a", "7"))));
    lab.tt(&["vm", "rm", "club/a"]).fails(1, "[ERR_TT_STATE]");
    lab.tt(&["env", "destroy", "club"]).good();
    lab.finish();
}

fn one_joins(lab: &Lab) {
    let spec = "b=micro,port=7";
    lab.tt(&["vm", "add", "club", spec]).good();
    let id = lab.vm("club", "b")["id"].clone();
    lab.serve_echo("club/b", 7);
    assert!(lab.client.reaches_tcp((HOST, lab.port("club", "b", "7"))));
    lab.sh("club/a", "ping -c 1 -W 5 b");
    lab.sh("club/b", "ping -c 1 -W 5 a && ping -c 1 -W 5 a.club");
    let six = tt_model::six::address(lab.addr("club", "b"));
    lab.sh("club/a", &format!("ping -6 -c 1 -W 5 {six} && nslookup b | grep {six}"));
    // Who asks anew asks for another one of its name.
    lab.tt(&["vm", "add", "club", spec]).fails(1, "[ERR_TT_EXISTS]");
    assert_eq!(lab.vm("club", "b")["id"], id);
    lab.assert_clean();
}

fn an_env_goes_back_only_as_a_whole(lab: &Lab) {
    let before = lab.boot_id("club/b");
    let refused = lab.tt(&["snapshot", "apply", "club", "alone"]);
    refused.fails(1, "[ERR_TT_NOT_FOUND]");
    refused.fails(1, "club/b");
    assert_eq!(lab.boot_id("club/b"), before);
    assert_eq!(lab.vm("club", "a")["incarnation"], 0);
}

fn one_leaves(lab: &Lab) {
    let id = lab.vm("club", "b")["id"].to_string();
    let (addr, public) = (lab.addr("club", "b").to_string(), lab.port("club", "b", "7"));
    lab.tt(&["snapshot", "create", "club/b", "last"]).good();
    lab.tt(&["vm", "rm", "club/b"]).good();
    lab.tt(&["vm", "show", "club/b"]).fails(1, "[ERR_TT_NOT_FOUND]");
    assert_eq!(lab.machines().len(), 1);
    for dir in ["images", "memory", "meta"] {
        let path = lab.data().join(dir).join(&id);
        assert!(!Path::new(&path).exists(), "{}", path.display());
    }
    assert!(lab.client.misses_tcp((HOST, public)));
    for to in ["b", &addr] {
        let ping = lab.exec("club/a", &["ping", "-c", "1", "-W", "2", to]);
        assert_ne!(ping.code, Some(0), "{to}");
    }
    lab.assert_clean();
}
