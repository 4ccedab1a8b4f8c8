//! Everything that changes what runs, through the whole loop: what is told before, what happens when
//! it fails on its way, and that what operators decided is never lost to a file, nor a file to them.

mod agent_support;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use agent_support::{A, Agent, B, Maps, config, places, request, service, text, web, write_config};
use axum::http::StatusCode;
use lb_userspace::{
    agent::run_loop::{Finding, Swept},
    api::{
        Refusal, Task, WriteOptions,
        model::{Applied, ApplyRequest, Change, CommandRequest, DecisionView, ServiceChange, ServiceRequest, Status},
    },
    config::{Config, FileText},
    dataplane::FlowCensus,
};
use tokio::time::sleep;

const WEB: &str = "203.0.113.10:80";
const C: &str = "10.0.0.13:8080";

fn addresses(backends: &[&str]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.parse().unwrap()).collect()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn web_of(backends: &[&str]) -> Config {
    config(vec![service("web", WEB, backends)])
}

/// `web` with A and B up.
async fn agent(maps: &Maps, dir: &Path) -> Agent {
    let agent = Agent::start(web(), maps, dir);
    agent.all_up(&[A, B]).await;
    agent
}

fn sent(config: &Config) -> ApplyRequest {
    let file = FileText { name: "new.toml".to_owned(), text: text(config) };
    ApplyRequest { files: Some(vec![file]), source: Some("new.toml".to_owned()), ..ApplyRequest::default() }
}

async fn apply(agent: &Agent, request: ApplyRequest) -> Result<Applied, Refusal> {
    agent.change(|reply| Task::Apply { request, reply }).await
}

async fn dry(agent: &Agent, request: ApplyRequest) -> Result<Applied, Refusal> {
    let options = WriteOptions { dry_run: true, revision: None };
    let answer = agent.ask(options, |reply| Task::Apply { request, reply }).await;
    agent.answered(answer).await
}

async fn change_service(agent: &Agent, name: &str, change: ServiceChange, force: bool) -> Result<String, Refusal> {
    let (name, request) = (name.to_owned(), ServiceRequest { change, reason: None, for_seconds: None, force });
    agent.change(|reply| Task::Service { name, request, reply }).await.map(|done| done.text)
}

async fn command(agent: &Agent, request: CommandRequest) -> Result<String, Refusal> {
    agent.change(|reply| Task::Command { request, reply }).await.map(|done| done.text)
}

async fn flows(agent: &Agent, backends: &[(u32, u64)]) {
    let live = backends.iter().map(|(_, flows)| flows).sum();
    let by_service = [(0, live)].into();
    let census = FlowCensus {
        live,
        aged: 0,
        by_backend: backends.iter().copied().collect(),
        by_service,
        ..FlowCensus::default()
    };
    let swept = Swept { census, took: Duration::ZERO, verdicts: [].into() };
    agent.find(Finding::Swept(Ok(swept))).await;
}

fn without_effect(status: &Status) -> Vec<String> {
    let told = |decision: &DecisionView| {
        let backend = decision.backend.map(|backend| format!(" {backend}")).unwrap_or_default();
        format!("{}{backend} {}: {}", decision.service, decision.what, decision.no_effect.as_deref().unwrap())
    };
    status.config.without_effect.iter().map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_tells_the_impact_and_changes_nothing() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    flows(&agent, &[(0, 7), (1, 5)]).await;
    let before = agent.status().await;
    let told = dry(&agent, sent(&web_of(&[A, C]))).await.unwrap();
    assert!(!told.applied && told.needs_restart.is_empty());
    let web = &told.impact.services[0];
    assert_eq!((web.name.as_str(), web.moved, web.flows.drained), ("web", 0.5, 5));
    assert_eq!((told.impact.flows.kept, told.impact.flows.drained, told.impact.flows.reset), (7, 5, 0));
    assert_eq!(agent.status().await.config, before.config);
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    assert!(agent.asked.lock().prepared.is_empty(), "the host was left alone too");

    let done = apply(&agent, sent(&web_of(&[A, C]))).await.unwrap();
    assert!(done.applied && done.published && done.revision != before.config.revision);
    assert_eq!(done.impact, told.impact, "it did what was told");
    agent.all_up(&[C]).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, C]));
    let status = agent.status().await.config;
    assert_eq!((status.source.as_str(), status.by.as_str()), ("new.toml", "root"));
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_flows_is_kept() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    flows(&agent, &[(0, 7), (1, 5)]).await;
    let mut larger = web();
    larger.limits.flows *= 2;
    let told = dry(&agent, sent(&larger)).await.unwrap();
    let flows = &told.impact.flows;
    assert_eq!(
        (told.needs_restart, flows.kept, flows.reset),
        (vec!["limits".to_owned()], 12, 0),
        "maps of another size take the flows over"
    );
    dry(&agent, ApplyRequest { max_reset: Some(0), ..sent(&larger) }).await.unwrap();
    let refused = apply(&agent, sent(&larger)).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.why.contains("`limits` cannot change while the agent runs"), "{}", refused.why);
    apply(&agent, ApplyRequest { max_reset: Some(0), ..sent(&web_of(&[A])) }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bad_configuration_changes_nothing_and_the_attempt_is_shown_until_one_succeeds() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let file = FileText { name: "new.toml".to_owned(), text: format!("{}\nweigth = 3\nteir = 1\n", text(&web())) };
    let bad = ApplyRequest { files: Some(vec![file]), source: Some("new.toml".to_owned()), ..ApplyRequest::default() };
    let refused = dry(&agent, bad.clone()).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(agent.status().await.reload_failed, None, "a dry run is no attempt");
    let refused = apply(&agent, bad).await.unwrap_err();
    let report = refused.report.unwrap();
    assert!(report.contains("did you mean `weight`?") && report.contains("new.toml: 2 errors"), "{report}");
    let failed = agent.status().await.reload_failed.unwrap().error;
    assert!(failed.contains("unknown key `weigth`"), "{failed}");

    fs::write(dir.path().join("lb.toml"), "interfaces = 7").unwrap();
    let status = agent.reload_as_it_is().await;
    assert!(status.reload_failed.as_ref().unwrap().error.contains("line 1, column 14"), "{:?}", status.reload_failed);
    assert!(status.problems()[0].starts_with("the last attempt"), "{:?}", status.problems());
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    assert_eq!(agent.reload(dir.path(), &web_of(&[A])).await.reload_failed, None);
}

#[tokio::test(start_paused = true)]
async fn without_a_file_the_agents_own_is_read_again() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    write_config(dir.path(), &web_of(&[A, C]));
    let told = dry(&agent, ApplyRequest::default()).await.unwrap();
    assert_eq!(told.impact.services[0].backends.len(), 2);
    apply(&agent, ApplyRequest::default()).await.unwrap();
    assert_eq!(agent.services().await[0].backends[1].address.to_string(), C);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_confirms_is_taken_back() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let first = agent.status().await.config;
    let done = apply(&agent, ApplyRequest { confirm_seconds: Some(60), ..sent(&web_of(&[A])) }).await.unwrap();
    assert!(done.confirm_until.is_some());
    let pending = agent.status().await.config.unconfirmed.unwrap();
    assert_eq!((pending.by.as_str(), pending.previous.as_str()), ("root", first.source.as_str()));
    assert_eq!(maps.choices(WEB), addresses(&[A]));
    let refused = apply(&agent, sent(&web())).await.unwrap_err();
    assert!(refused.why.contains("waits to be confirmed"), "{}", refused.why);
    sleep(Duration::from_secs(50)).await;
    assert!(agent.status().await.config.unconfirmed.is_some());
    for _ in 0..40 {
        agent.make_ready().await;
        sleep(Duration::from_millis(500)).await;
    }
    agent.all_up(&[B]).await;
    let status = agent.status().await;
    assert_eq!((status.config.unconfirmed, status.config.source.as_str()), (None, first.source.as_str()));
    assert_eq!(maps.choices(WEB), addresses(&[A, B]), "back");
    assert!(status.notices.iter().any(|notice| notice.text.contains("nobody confirmed it")), "{:?}", status.notices);
    let places = places(dir.path());
    assert!(
        places.keeper.unconfirmed().unwrap().unwrap().files[0].text.contains("web"),
        "it must not run by itself again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_confirmed_stays_and_is_the_good_one() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let nothing = agent.change(|reply| Task::Confirm { reply }).await.unwrap_err();
    assert_eq!((nothing.status, nothing.why.as_str()), (StatusCode::CONFLICT, "no change waits to be confirmed"));
    apply(&agent, ApplyRequest { confirm_seconds: Some(60), ..sent(&web_of(&[A])) }).await.unwrap();
    assert_eq!(places(dir.path()).keeper.good().unwrap(), None, "not yet");
    let done = agent.change(|reply| Task::Confirm { reply }).await.unwrap();
    assert_eq!((done.what.as_str(), done.source.as_str()), ("confirmed", "new.toml"));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(maps.choices(WEB), addresses(&[A]));
    let places = places(dir.path());
    assert_eq!(places.keeper.good().unwrap().unwrap().source, "new.toml");
    assert_eq!(places.keeper.unconfirmed().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_change_can_be_taken_back_at_once() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    apply(&agent, ApplyRequest { confirm_seconds: Some(60), ..sent(&web_of(&[A])) }).await.unwrap();
    // What an operator decides meanwhile is not taken back with it.
    command(&agent, CommandRequest { force: true, ..request(Change::Drain) }).await.unwrap();
    let done = agent.change(|reply| Task::RollBack { reply: Some(reply) }).await.unwrap();
    assert_eq!(done.what, "rolled back");
    agent.all_up(&[B]).await;
    assert_eq!(maps.choices(WEB), addresses(&[B]));
}

#[tokio::test(start_paused = true)]
async fn of_two_writers_with_the_same_revision_the_second_is_refused() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let seen = agent.status().await.config.revision;
    let options = WriteOptions { dry_run: false, revision: Some(seen.clone()) };
    let first = agent.ask(options.clone(), |reply| Task::Command { request: request(Change::Drain), reply }).await;
    let second = agent.ask(options.clone(), |reply| Task::Apply { request: sent(&web_of(&[A])), reply }).await;
    let done = agent.answered(first).await.unwrap();
    assert_ne!(done.revision, seen);
    let refused = agent.answered(second).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.why.contains(&format!("it was meant for revision {seen}")), "{}", refused.why);
    let options = WriteOptions { revision: Some(done.revision), ..options };
    let again = agent.ask(options, |reply| Task::Command { request: request(Change::Ready), reply }).await;
    agent.answered(again).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_change_can_be_tried() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let before = agent.status().await.config;
    let options = || WriteOptions { dry_run: true, revision: None };
    let tried = agent.ask(options(), |reply| Task::Command { request: request(Change::Drain), reply }).await;
    let tried = agent.answered(tried).await.unwrap();
    assert!(tried.dry_run && tried.text == "dry run: drain web 10.0.0.11:8080, no flows left", "{tried:?}");
    let change = ServiceChange::Remove;
    let request = ServiceRequest { change, reason: None, for_seconds: None, force: true };
    let name = "web".to_owned();
    let tried = agent.ask(options(), |reply| Task::Service { name, request, reply }).await;
    let tried = agent.answered(tried).await.unwrap();
    assert_eq!((tried.dry_run, tried.impact.services[0].presence.as_str()), (true, "removed"));
    assert_eq!(agent.status().await.config, before);
    apply(&agent, ApplyRequest { confirm_seconds: Some(60), ..sent(&web_of(&[A])) }).await.unwrap();
    let tried = agent.ask(options(), |reply| Task::Confirm { reply }).await;
    assert!(agent.answered(tried).await.unwrap().dry_run);
    let tried = agent.ask(options(), |reply| Task::RollBack { reply: Some(reply) }).await;
    assert!(agent.answered(tried).await.unwrap().dry_run);
    assert!(agent.status().await.config.unconfirmed.is_some(), "and it still waits");
}

#[tokio::test(start_paused = true)]
async fn several_backends_are_drained_as_one_change() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web_of(&[A, B, C]), &maps, dir.path());
    agent.all_up(&[A, B, C]).await;
    let generation = agent.status().await.data_path.generation;
    let both = CommandRequest { addresses: addresses(&[B, A]), ..request(Change::Drain) };
    let done = agent.change(|reply| Task::Command { request: both.clone(), reply }).await.unwrap();
    assert_eq!((done.others.len(), done.others[0].address.to_string()), (1, B.to_owned()));
    assert_eq!(maps.choices(WEB), addresses(&[C]));
    assert_eq!(agent.status().await.data_path.generation, generation + 1);
    let all = CommandRequest { addresses: addresses(&[C]), ..request(Change::Maintenance) };
    let refused = command(&agent, all).await.unwrap_err();
    assert!(refused.what.contains("and 1 more") && refused.why.contains("last ready backend"), "{refused:?}");
}

/// In real time: decisions end by the wall clock.
#[tokio::test]
async fn a_decision_with_an_end_ends_by_itself() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let reason = Some("new kernel".to_owned());
    let timed = CommandRequest { for_seconds: Some(2), reason, ..request(Change::Drain) };
    command(&agent, timed).await.unwrap();
    let admin = &agent.services().await[0].backends[0].admin;
    assert_eq!((admin.state.as_str(), admin.reason.as_deref()), ("drain", Some("new kernel")));
    assert!(admin.until.is_some());
    assert_eq!(maps.choices(WEB), addresses(&[B]));
    let stored = fs::read_to_string(dir.path().join("operator.json")).unwrap();
    assert!(stored.contains("new kernel") && stored.contains("until"), "{stored}");
    let began = std::time::Instant::now();
    while maps.choices(WEB) != addresses(&[A, B]) {
        assert!(began.elapsed() < Duration::from_secs(20), "it did not end");
        sleep(Duration::from_millis(20)).await;
        agent.status().await;
    }
    assert!(!fs::read_to_string(dir.path().join("operator.json")).unwrap().contains("new kernel"));
    let refused = command(&agent, CommandRequest { for_seconds: Some(2), ..request(Change::Ready) }).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// In real time: the next agent carries the end out.
#[tokio::test]
async fn a_decision_ends_after_a_restart_too() {
    let (maps, dir) = (Maps::new(), dir());
    let first = agent(&maps, dir.path()).await;
    command(&first, CommandRequest { for_seconds: Some(1), ..request(Change::Drain) }).await.unwrap();
    first.end().await;
    sleep(Duration::from_millis(1500)).await;
    let next = Agent::start(web(), &maps, dir.path());
    next.all_up(&[A, B]).await;
    let began = std::time::Instant::now();
    while next.services().await[0].backends[0].admin.state != "ready" {
        assert!(began.elapsed() < Duration::from_secs(20), "it did not end");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
}

#[tokio::test(start_paused = true)]
async fn what_was_drained_stays_drained_when_the_file_loses_it_and_brings_it_back() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    command(&agent, request(Change::Drain)).await.unwrap();
    let status = agent.reload(dir.path(), &web_of(&[B])).await;
    assert_eq!(without_effect(&status), [format!("web {A} drain: the file has no backend {A} in `web`")]);
    let status = agent.reload(dir.path(), &web()).await;
    assert!(without_effect(&status).is_empty());
    assert_eq!(agent.services().await[0].backends[0].admin.state, "drain");
    assert_eq!(maps.choices(WEB), addresses(&[B]));
}

#[tokio::test(start_paused = true)]
async fn what_was_added_gives_way_to_the_file_and_comes_back_without_it() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let add = CommandRequest { address: C.parse().unwrap(), ..request(Change::Add { weight: None, tier: None }) };
    command(&agent, add).await.unwrap();
    agent.all_up(&[C]).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B, C]));
    let status = agent.reload(dir.path(), &web_of(&[A, B, C])).await;
    assert_eq!(without_effect(&status), [format!("web {C} added, tier 0: the file has this backend")]);
    agent.reload(dir.path(), &web()).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B, C]), "the operator's word stands");
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_stays_removed_through_reloads() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    command(&agent, request(Change::Remove)).await.unwrap();
    agent.reload(dir.path(), &web_of(&[A, B, C])).await;
    agent.all_up(&[C]).await;
    assert_eq!(maps.choices(WEB), addresses(&[B, C]));
    let status = agent.reload(dir.path(), &config(Vec::new())).await;
    assert_eq!(without_effect(&status), [format!("web {A} removed: there is no service `web`")]);
}

#[tokio::test(start_paused = true)]
async fn a_service_is_added_beside_the_file_and_survives_reload_and_restart() {
    const X: &str = "203.0.113.30:80";
    let (maps, dir) = (Maps::new(), dir());
    let first = agent(&maps, dir.path()).await;
    let toml = format!(
        "[[service]]\nname = \"x\"\nlisten = \"{X}\"\nmode = \"nat\"\n[[service.backend]]\naddress = \"{C}\"\n"
    );
    let add = || ServiceChange::Add { toml: Some(toml.clone()) };
    assert_eq!(change_service(&first, "x", add(), false).await.unwrap(), "is added");
    first.all_up(&[C]).await;
    assert_eq!(maps.choices(X), addresses(&[C]));
    let twice = change_service(&first, "x", add(), false).await.unwrap_err();
    assert_eq!(twice.status, StatusCode::CONFLICT);
    let other = change_service(&first, "y", add(), false).await.unwrap_err();
    assert!(other.why.contains("one [[service]] table with this name"), "{}", other.why);
    first.reload(dir.path(), &web_of(&[A])).await;
    assert_eq!(maps.choices(X), addresses(&[C]), "a reload leaves it alone");
    // The file may not take what the operator's service has.
    let clash = first.reload(dir.path(), &config(vec![service("z", X, &[A])])).await.reload_failed.unwrap();
    assert!(clash.error.contains("another service listens on 203.0.113.30:80"), "{}", clash.error);
    // A command about it works like about any other.
    let drain =
        CommandRequest { service: "x".to_owned(), address: C.parse().unwrap(), force: true, ..request(Change::Drain) };
    command(&first, drain).await.unwrap();
    first.end().await;

    let next = Agent::start(web_of(&[A]), &maps, dir.path());
    let services = next.services().await;
    assert_eq!((services.len(), services[1].name.as_str()), (2, "x"));
    assert_eq!(services[1].backends[0].admin.state, "drain");
    let status = next.reload(dir.path(), &config(vec![service("x", X, &[A])])).await;
    assert_eq!(without_effect(&status)[0], "x added: the file has a service of this name");
    next.reload(dir.path(), &web_of(&[A])).await;
    assert_eq!(change_service(&next, "x", ServiceChange::Remove, false).await.unwrap(), "is removed: no flows left");
    assert_eq!(next.services().await.len(), 1);
    assert!(!fs::read_to_string(dir.path().join("operator.json")).unwrap().contains("\"x\""), "nothing is left of it");
}

#[tokio::test(start_paused = true)]
async fn a_service_of_the_file_is_removed_only_by_force_and_comes_back_as_it_was() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    command(&agent, request(Change::Drain)).await.unwrap();
    let refused = change_service(&agent, "web", ServiceChange::Remove, false).await.unwrap_err();
    assert!(refused.why.contains("--force"), "{}", refused.why);
    change_service(&agent, "web", ServiceChange::Remove, true).await.unwrap();
    assert!(maps.choices(WEB).is_empty());
    let status = agent.reload(dir.path(), &web_of(&[A, B, C])).await;
    assert_eq!(status.services.len(), 0, "a reload does not bring it back");
    assert_eq!(without_effect(&status), [format!("web {A} drain: the service is removed")]);
    let unknown = change_service(&agent, "wbe", ServiceChange::Remove, true).await.unwrap_err();
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(change_service(&agent, "web", ServiceChange::Add { toml: None }, false).await.unwrap(), "is back");
    let backends = &agent.services().await[0].backends;
    assert_eq!(backends[0].admin.state, "drain", "and what was decided about its backends");
    assert_eq!(backends.iter().filter(|backend| !backend.leaving).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_services_that_cannot_be_stored_changes_nothing() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    fs::create_dir(dir.path().join("operator.json.new")).unwrap();
    let refused = change_service(&agent, "web", ServiceChange::Remove, true).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    let refused = apply(&agent, sent(&web_of(&[A]))).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    fs::remove_dir(dir.path().join("operator.json.new")).unwrap();
    apply(&agent, sent(&web_of(&[A]))).await.unwrap();
    assert_eq!(maps.choices(WEB), addresses(&[A]));
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_carried_out_one_after_the_other() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    let first =
        agent.ask(WriteOptions::default(), |reply| Task::Apply { request: sent(&web_of(&[A, B, C])), reply }).await;
    let drain = CommandRequest { address: C.parse().unwrap(), ..request(Change::Drain) };
    let second = agent.ask(WriteOptions::default(), |reply| Task::Command { request: drain, reply }).await;
    agent.answered(first).await.unwrap();
    agent.answered(second).await.expect("it was planned on what the first one left");
    assert_eq!(agent.services().await[0].backends[2].admin.state, "drain");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_changes_is_taken_over_only_where_that_is_wanted() {
    use lb_userspace::agent::changes::Author;
    let (maps, dir) = (Maps::new(), dir());
    let agent = agent(&maps, dir.path()).await;
    write_config(dir.path(), &Config { watch_config: true, ..web_of(&[A]) });
    agent.find(Finding::Reload(Author::Watch)).await;
    sleep(Duration::from_secs(1)).await;
    assert!(agent.asked.lock().prepared.is_empty(), "nobody asked for it");
    agent.reload_as_it_is().await;
    write_config(dir.path(), &Config { watch_config: true, ..web_of(&[A, B]) });
    agent.findings.send(Finding::Reload(Author::Watch)).await.unwrap();
    let before = agent.status().await.config.revision;
    while agent.status().await.config.revision == before {
        agent.make_ready().await;
    }
    assert_eq!(agent.status().await.config.by, "file watch");
}
