//! Each route, good and bad.

use crate::common::{commit, host, server, settled, spec, template};
use tt_api::ClientError;
use tt_api::views::{EnvPhase, TemplatePhase};
use tt_model::{
    EnvSpec, ErrorCode, Goal, Phase, StopMode, TemplateSource, TemplateSpec, Trouble, VmSpec,
};
use tt_store::tables::Change;

pub fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorCode {
    answer.unwrap_err().code().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_env_is_made_shown_listed_and_destroyed() {
    let server = server();
    let client = &server.client;
    assert_eq!(client.version().await.unwrap().api, "v1");
    let created = client.create_env("shop", "k", &spec(2)).await.unwrap();
    assert_eq!(created.phase, EnvPhase::Creating);
    assert_eq!(created.vms.len(), 2);
    assert_eq!(client.env("shop").await.unwrap(), created);
    assert_eq!(client.envs().await.unwrap().envs, std::slice::from_ref(&created));
    assert_eq!(client.vms().await.unwrap().vms, created.vms);
    assert_eq!(client.vm("shop", "micro-1").await.unwrap(), created.vms[0]);
    assert_eq!(code(client.env("other").await), ErrorCode::NotFound);
    assert_eq!(code(client.vm("shop", "db").await), ErrorCode::NotFound);
    assert_eq!(code(client.vm("other", "db").await), ErrorCode::NotFound);

    let going = client.destroy_env("shop").await.unwrap();
    assert_eq!(going.phase, EnvPhase::Ending);
    assert!(going.vms.iter().all(|view| view.vm.goal == Goal::Gone));
    let revision = server.tables.revision().unwrap();
    assert_eq!(client.destroy_env("shop").await.unwrap(), going);
    assert_eq!(server.tables.revision().unwrap(), revision);
    assert_eq!(code(client.extend_env("shop", 1).await), ErrorCode::State);
    server.erase("shop");
    assert_eq!(code(client.destroy_env("shop").await), ErrorCode::NotFound);
    assert!(client.envs().await.unwrap().envs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_env_stops_starts_and_extends() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 2).await;
    assert_eq!(env.phase, EnvPhase::Ready);
    assert!(env.is_settled());

    let paused = client.stop_env("shop", Some(StopMode::Pause)).await.unwrap();
    assert_eq!((paused.phase, paused.env.state.is_stopped), (EnvPhase::Stopping, true));
    let error = client.start_env("shop").await.unwrap_err();
    let ClientError::Problem(problem) = error else { panic!("{error}") };
    assert_eq!((problem.code, problem.status), (ErrorCode::TooSoon, 429));
    assert_eq!((problem.retry, problem.retry_after_ms), (true, Some(1000)));

    server.later();
    assert_eq!(client.start_env("shop").await.unwrap().phase, EnvPhase::Starting);
    server.later();
    assert_eq!(
        code(client.stop_env("shop", Some(StopMode::Suspend)).await),
        ErrorCode::Unsupported
    );
    let extended = client.extend_env("shop", 50).await.unwrap();
    assert_eq!(extended.env.end_timestamp, env.env.end_timestamp + 50);
    assert_eq!(code(client.extend_env("shop", 1_000).await), ErrorCode::LifeTime);
    assert_eq!(code(client.extend_env("shop", u64::MAX).await), ErrorCode::LifeTime);
    assert_eq!(code(client.stop_env("other", Some(StopMode::Kill)).await), ErrorCode::NotFound);
    assert_eq!(code(client.start_env("other").await), ErrorCode::NotFound);
    assert_eq!(code(client.extend_env("other", 1).await), ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mode_each_member_rests_as_its_engine_does_it_best() {
    let server = server();
    let client = &server.client;
    let vm = |engine: &str| VmSpec { engine: Some(engine.into()), ..VmSpec::new("micro") };
    let spec = EnvSpec { vms: vec![vm("full"), vm("fake")], ..EnvSpec::default() };
    client.create_env("shop", "k", &spec).await.unwrap();
    let env = client.stop_env("shop", None).await.unwrap();
    let goals: Vec<_> = env.vms.iter().map(|view| view.vm.goal).collect();
    assert_eq!(goals, [Goal::Suspended, Goal::Stopped]);
    assert!(env.vms[0].vm.kill_timestamp == 0 && env.vms[1].vm.kill_timestamp > 0);
    for view in &env.vms {
        let status = settled(&view.vm, Phase::Stopped);
        commit(&server.tables, &Change::new().status(view.vm.id, &status).unwrap());
    }
    let mut row = server.tables.env_by_name("shop").unwrap().unwrap();
    row.value.is_created = true;
    commit(&server.tables, &Change::new().env(&row).unwrap());
    assert_eq!(client.env("shop").await.unwrap().phase, EnvPhase::Suspended);
    server.later();
    let vm = client.stop_vm("shop", "micro", None).await.unwrap();
    assert_eq!(vm.vm.goal, Goal::Suspended);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_stops_and_starts_alone() {
    let server = server();
    let client = &server.client;
    server.ready_env("shop", 2).await;
    let vm = client.stop_vm("shop", "micro-1", Some(StopMode::Shutdown)).await.unwrap();
    assert_eq!((vm.vm.goal, vm.is_settled), (Goal::Stopped, false));
    assert_eq!(vm.vm.kill_timestamp, 1_000_020);
    let change = Change::new().status(vm.vm.id, &settled(&vm.vm, Phase::Stopped)).unwrap();
    commit(&server.tables, &change);
    let env = client.env("shop").await.unwrap();
    assert_eq!((env.phase, env.env.state.is_stopped), (EnvPhase::Ready, false));
    assert_eq!(env.vms[1].vm.goal, Goal::Running);

    server.later();
    let vm = client.start_vm("shop", "micro-1").await.unwrap();
    assert_eq!((vm.vm.goal, vm.is_settled), (Goal::Running, false));
    assert_eq!(client.env("shop").await.unwrap().phase, EnvPhase::Starting);
    server.later();
    assert_eq!(code(client.stop_vm("shop", "db", Some(StopMode::Kill)).await), ErrorCode::NotFound);
    assert_eq!(code(client.start_vm("shop", "db").await), ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_shows_until_the_record_changes() {
    let server = server();
    let env = server.ready_env("shop", 1).await;
    let trouble = Trouble { code: ErrorCode::Exited, why: "it died".into(), retry: true };
    let mut status = settled(&env.vms[0].vm, Phase::Machine);
    status.trouble = Some(trouble);
    commit(&server.tables, &Change::new().status(env.vms[0].vm.id, &status).unwrap());
    assert_eq!(server.client.env("shop").await.unwrap().phase, EnvPhase::Trouble);
    let stopped = server.client.stop_env("shop", Some(StopMode::Kill)).await.unwrap();
    assert_eq!(stopped.phase, EnvPhase::Stopping);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_hosts_and_verify_are_answered() {
    let server = server();
    let client = &server.client;
    let env = server.ready_env("shop", 1).await;
    let id = env.vms[0].vm.id;
    let log = client.log("shop", "micro", None).await.unwrap();
    assert_eq!(String::from_utf8(log).unwrap(), format!("log of {id}, 16384"));
    let log = client.log("shop", "micro", Some(5)).await.unwrap();
    assert_eq!(String::from_utf8(log).unwrap(), format!("log of {id}, 5"));
    assert_eq!(code(client.log("shop", "micro", Some(u64::MAX)).await), ErrorCode::Invalid);
    assert_eq!(code(client.log("shop", "db", None).await), ErrorCode::NotFound);
    assert_eq!(client.traffic("shop", "micro").await.unwrap().sent_packets, id.0);
    assert_eq!(code(client.traffic("shop", "db").await), ErrorCode::NotFound);

    let hosts = client.hosts().await.unwrap().hosts;
    assert_eq!(hosts[0].host, host());
    assert_eq!((hosts[0].usage.vm_num, hosts[0].usage.mem_size), (1, 32));
    assert_eq!(hosts[0].engine_features["mute"], ["nat"]);
    assert_eq!(client.host("h.example").await.unwrap(), hosts[0]);
    assert_eq!(code(client.host("other").await), ErrorCode::NotFound);
    let looked = client.verify().await.unwrap();
    assert_eq!((looked.findings[0].id, looked.repaired.len()), (Some(9), 0));
    let repaired = client.repair().await.unwrap();
    assert_eq!((repaired.findings.len(), repaired.repaired[0].id), (0, Some(9)));
    assert_eq!(client.openapi().await.unwrap()["openapi"], "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_are_asked_for_and_removed() {
    let server = server();
    let client = &server.client;
    let request = build("micro", "micro");
    let revision = server.tables.revision().unwrap();
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Ready);
    for (name, recipe) in [("micro", "debian"), ("other", "micro")] {
        assert_eq!(code(client.make_template(&build(name, recipe)).await), ErrorCode::Unsupported);
    }
    assert_eq!(server.tables.revision().unwrap(), revision);

    client.create_env("shop", "k", &spec(12)).await.unwrap();
    let error = client.remove_template("micro").await.unwrap_err();
    let ClientError::Problem(problem) = error else { panic!("{error}") };
    assert_eq!((problem.code, problem.status), (ErrorCode::InUse, 409));
    assert!(problem.detail.contains("shop/micro-1, ") && problem.detail.contains("and 4 more"));
    client.destroy_env("shop").await.unwrap();
    server.erase("shop");

    assert_eq!(client.remove_template("micro").await.unwrap().phase, TemplatePhase::Removing);
    assert_eq!(client.remove_template("micro").await.unwrap().phase, TemplatePhase::Removing);
    assert_eq!(code(client.make_template(&request).await), ErrorCode::State);
    assert_eq!(code(client.create_env("shop", "k", &spec(1)).await), ErrorCode::State);
    let row = server.tables.template("micro").unwrap().unwrap();
    commit(&server.tables, &Change::new().remove_template(&row));
    assert_eq!(code(client.template("micro").await), ErrorCode::NotFound);
    assert_eq!(code(client.remove_template("micro").await), ErrorCode::NotFound);

    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
    let mut row = server.tables.template("micro").unwrap().unwrap();
    row.value.trouble = Some(Trouble { code: ErrorCode::Template, why: "no".into(), retry: false });
    commit(&server.tables, &Change::new().template(&row).unwrap());
    assert_eq!(client.template("micro").await.unwrap().phase, TemplatePhase::Failed);
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_a_url_is_in_no_answer() {
    let server = server();
    let import = |from: &str| TemplateSpec {
        name: "disk".into(),
        source: TemplateSource::Import {
            from: from.into(),
            digest: None,
            format: None,
            features: Vec::new(),
        },
        memo: None,
    };
    let asked = import("https://a.org/x.img?sig=secret");
    let made = server.client.make_template(&asked).await.unwrap();
    let again = server.client.make_template(&asked).await.unwrap();
    let shown = server.client.template("disk").await.unwrap();
    for view in [made, again, shown] {
        assert_eq!(view.source, Some(import("https://a.org/x.img").source));
    }
    // Whoever fetches it has all of it as long as that takes.
    let row = server.tables.template("disk").unwrap().unwrap();
    assert_eq!(row.value.source, Some(asked.source));
    // Another query may be another file.
    let other = server.client.make_template(&import("https://a.org/x.img?sig=other")).await;
    assert_eq!(code(other), ErrorCode::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_with_slashes_has_a_path() {
    let server = server();
    let name = "github.com/ktmlm/alpine";
    commit(&server.tables, &Change::new().new_template(&template(name)).unwrap());
    assert_eq!(server.client.template(name).await.unwrap().name, name);
    let names: Vec<_> =
        server.client.templates().await.unwrap().templates.into_iter().map(|t| t.name).collect();
    assert_eq!(names, [name, "micro"]);
    let env = EnvSpec { vms: vec![VmSpec::new(name)], ..EnvSpec::default() };
    let env = server.client.create_env("a", "k", &env).await.unwrap();
    assert_eq!(env.vms[0].vm.name, "alpine");
    assert_eq!(code(server.client.remove_template(name).await), ErrorCode::InUse);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_there_is_named() {
    let client = tt_api::Client::new("/nonexistent/tt.sock".into());
    let error = client.version().await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(error.to_string(), "no daemon answers at /nonexistent/tt.sock");
}

fn build(name: &str, recipe: &str) -> TemplateSpec {
    TemplateSpec {
        name: name.into(),
        source: TemplateSource::Build { recipe: recipe.into() },
        memo: None,
    }
}
