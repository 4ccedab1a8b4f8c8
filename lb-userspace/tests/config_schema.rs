//! The JSON Schema, held against the reader: what one accepts the other accepts, and what it refuses
//! is refused, as far as a schema can see.

use std::{fs, path::PathBuf};

use lb_userspace::config::{EXAMPLE, InitWish, init, schema};
use serde_json::Value;

fn folder(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind)
}

/// Why the schema refuses a document; `None`: it does not.
fn why_refused(schema: Value, text: &str) -> Option<String> {
    let document: toml::Table = match text.parse() {
        Ok(document) => document,
        // No editor gets as far as the schema.
        Err(error) => return Some(error.to_string()),
    };
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.set_default_draft(boon::Draft::V2020_12);
    compiler.add_resource("lb.json", schema).expect("a schema");
    let index = compiler.compile("lb.json", &mut schemas).expect("a sound schema");
    let value = serde_json::to_value(document).expect("plain data");
    schemas.validate(&value, index).err().map(|error| error.to_string())
}

fn fixtures(kind: &str) -> Vec<(String, String)> {
    let files = fs::read_dir(folder(kind)).expect("the folder of fixtures").map(|entry| {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("a text"))
    });
    files.collect()
}

/// Refused for what stands in two places, or for arithmetic: no schema can tell.
const RELATIONS: &[&str] = &[
    "backend_is_the_service_itself",
    "backend_twice",
    "backend_with_a_port_of_a_service_on_every_port",
    "backend_without_a_port",
    "beyond_the_limits",
    "dsr_with_another_port",
    "every_port_check_without_a_port",
    "http_settings_on_a_tcp_check",
    "listen_twice",
    "maglev_table_that_is_no_prime",
    "maglev_tables_beyond_the_slots",
    "name_twice",
    "packets_by_their_backends_load",
    "packets_of_tcp",
    "sctp",
    "timeout_longer_than_interval",
    "too_few_source_ports",
    "two_families_in_a_service",
    "udp_check_without_a_port",
];

#[test]
fn what_the_reader_accepts_is_valid() {
    let documents = fs::read_to_string(folder("../../../docs/configuration.md")).expect("docs/configuration.md");
    let blocks: Vec<&str> = documents.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2, "the documentation has examples");
    for block in blocks {
        let part = !block.contains("interfaces");
        // A lone [service.health] is a part of a service.
        let block = if block.starts_with("[service.") {
            block.replacen("[service.", "[[service]]\nname = \"x\"\nlisten = \"203.0.113.1:80\"\n[service.", 1)
        } else {
            block.to_owned()
        };
        assert_eq!(why_refused(schema(part), &block), None, "{block}");
    }
    assert_eq!(why_refused(schema(false), EXAMPLE), None);
    assert_eq!(why_refused(schema(false), &init(&[], &InitWish::default())), None);
    for (name, text) in fixtures("warned") {
        assert_eq!(why_refused(schema(false), &text), None, "{name}");
    }
}

#[test]
fn what_the_reader_refuses_is_invalid_unless_it_takes_two_settings_to_see_it() {
    let mut passed: Vec<String> = fixtures("refused")
        .into_iter()
        .filter(|(_, text)| why_refused(schema(false), text).is_none())
        .map(|(name, _)| name)
        .collect();
    passed.sort();
    assert_eq!(passed, RELATIONS);
}

/// A service that is checked with these lines.
fn checked(lines: &str) -> String {
    format!("[[service]]\nname = \"x\"\nlisten = \"203.0.113.1:80\"\n[service.health]\n{lines}\n")
}

#[test]
fn values_of_checks_and_roles_have_a_shape_too() {
    for lines in [
        "type = \"https\"\nbody-regex = \"(?i)^ok\"\nheaders = [\"X-Ready\", \"Content-Type: json\"]",
        "type = \"udp\"\nsend = \"hex:0d0a ff00\"\nreceive = \"pong\"",
        "type = \"dns\"\nquery = \".\"",
        "type = \"dns\"\nquery = \"_sip._udp.example.org.\"\nquery-type = \"SRV\"\nanswer = \"10 5 5060 sip.\"",
        "type = \"exec\"\ncommand = \"/bin/true\"\narguments = [\"a b\", \"\"]",
    ] {
        assert_eq!(why_refused(schema(true), &checked(lines)), None, "{lines}");
    }
    for print in ["AB:".repeat(31) + "AB", "ab".repeat(32)] {
        let lines = format!("type = \"tls\"\nfingerprint = \"{print}\"");
        assert_eq!(why_refused(schema(true), &checked(&lines)), None, "{lines}");
    }
    for (lines, key) in [
        ("body = \"\"", "body"),
        ("body-regex = 1", "body-regex"),
        ("headers = [\"two words: x\"]", "headers"),
        ("headers = \"X-Ready\"", "headers"),
        ("send = \"hex:0d0\"", "send"),
        ("receive = \"\"", "receive"),
        ("query = \"a..b\"", "query"),
        ("query-type = \"ANY\"", "query-type"),
        ("fingerprint = \"abcd\"", "fingerprint"),
        ("ca-file = \"ca.pem\"", "ca-file"),
        ("command = \"true\"", "command"),
        ("arguments = \"--quick\"", "arguments"),
        ("agent-port = 0", "agent-port"),
        ("server-name = \"b\u{e4}r.example\"", "server-name"),
    ] {
        let why = why_refused(schema(true), &checked(lines)).unwrap_or_default();
        assert!(why.contains(&format!("/health/{key}")), "{lines}: {why}");
    }
    let lagging =
        |lag: &str| checked("type = \"postgres\"").replace("[service.h", &format!("max-lag = {lag}\n[service.h"));
    for (lag, good) in [("\"16MiB\"", true), ("\"500 kB\"", true), ("\"10s\"", true), ("\"-1s\"", false), ("16", false)]
    {
        assert_eq!(why_refused(schema(true), &lagging(lag)).is_none(), good, "{lag}");
    }
    let elsewhere =
        |at: &str| format!("{}[[service.backend]]\naddress = \"10.0.0.1:80\"\ncheck-address = {at}\n", checked(""));
    for (at, good) in [("\"10.1.0.11\"", true), ("\"[2001:db8::1]:8008\"", true), ("\"db1.example\"", false)] {
        assert_eq!(why_refused(schema(true), &elsewhere(at)).is_none(), good, "{at}");
    }
}

#[test]
fn every_key_has_a_description_and_every_table_is_closed() {
    fn walk(path: &str, schema: &Value, seen: &mut usize) {
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            for (name, key) in properties {
                let path = format!("{path}.{name}");
                assert!(key["description"].as_str().is_some_and(|text| text.len() > 10), "{path}");
                *seen += 1;
                walk(&path, key, seen);
                walk(&path, &key["items"], seen);
            }
        }
    }
    let mut seen = 0;
    walk("", &schema(false), &mut seen);
    assert!(seen > 30, "{seen} keys");
}

#[test]
fn a_file_of_a_directory_needs_nothing_at_the_top() {
    let text = "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\n";
    assert!(why_refused(schema(false), text).is_some_and(|why| why.contains("interfaces")));
    assert_eq!(why_refused(schema(true), text), None);
    assert!(why_refused(schema(true), "[[service]]\nname = \"web\"\n").is_some_and(|why| why.contains("listen")));
}

#[test]
fn defaults_are_values_of_their_own_type() {
    let schema = schema(false);
    let top = &schema["properties"];
    assert_eq!(top["watch-config"]["default"], false);
    assert_eq!(top["maglev-table-size"]["default"], 65_537);
    let service = &top["service"]["items"]["properties"];
    assert_eq!(service["mode"]["default"], "full-nat");
    assert_eq!(service["health"]["properties"]["interval"]["default"], "1s");
    assert_eq!(service["backend"]["items"]["properties"]["weight"]["maximum"], 1000);
}
