//! A directory of files: one configuration, with diagnostics that name their file.

use std::{fs, path::Path};

use lb_userspace::config::{Loaded, load};

const GLOBALS: &str = "interfaces = [\"eth0\"]\n";

fn service(name: &str, port: u16) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"203.0.113.10:{port}\"\n\
         [[service.backend]]\naddress = \"10.0.0.11:8080\"\n"
    )
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

fn accepted(path: &Path) -> Loaded {
    load(path).unwrap_or_else(|error| panic!("refused:\n{error}"))
}

/// The report, without the folder's own name.
fn refused(folder: &tempfile::TempDir) -> String {
    let error = load(folder.path()).expect_err("accepted");
    error.to_string().replace(&folder.path().display().to_string(), "lb.d")
}

#[test]
fn services_of_all_files_come_in_the_order_of_their_names() {
    let folder = folder(&[
        ("20-web.toml", &service("web", 80)),
        ("00-globals.toml", GLOBALS),
        ("10-api.toml", &format!("{}{}", service("api", 81), service("api2", 82))),
        // What editors and packages leave behind.
        (".20-web.toml.swp", "not toml"),
        ("20-web.toml~", "not toml"),
        ("30-old.toml.dpkg-old", "not toml"),
    ]);
    fs::create_dir(folder.path().join("sub.toml")).expect("a folder");
    let loaded = accepted(folder.path());
    let names: Vec<&str> = loaded.config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["api", "api2", "web"]);
    let whole = folder.path().join("00-globals.toml");
    fs::write(&whole, format!("{GLOBALS}{}{}{}", service("api", 81), service("api2", 82), service("web", 80))).unwrap();
    assert_eq!(accepted(&whole).config, loaded.config, "the same as one file");
}

#[test]
fn errors_name_the_file_that_they_are_in() {
    let folder = folder(&[
        ("a.toml", &format!("{GLOBALS}{}", service("web", 80))),
        ("b.toml", &service("web", 81)),
        ("c.toml", &format!("\n\n{}weigth = 3\n", service("api", 80))),
    ]);
    insta::assert_snapshot!(refused(&folder));
    let error = load(folder.path()).expect_err("accepted");
    let files: Vec<_> =
        error.diagnostics().iter().map(|d| d.file.clone().unwrap().rsplit('/').next().unwrap().to_owned()).collect();
    assert_eq!(files, ["b.toml", "c.toml", "c.toml"]);
}

#[test]
fn settings_of_the_whole_stand_in_one_file_only() {
    let folder = folder(&[
        ("a.toml", "interfaces = [\"eth0\"]\n[limits]\nflows = 1024\n"),
        ("b.toml", "interfaces = [\"eth0\"]\n[limits]\nservices = 16\n[service]\nname = \"x\"\n"),
        ("c.toml", &service("web", 80)),
    ]);
    insta::assert_snapshot!(refused(&folder));
}

#[test]
fn what_cannot_be_parsed_is_told_of_every_file() {
    let folder = folder(&[("a.toml", "interfaces = [\n"), ("b.toml", "listen = 10.0.0.1:80\n"), ("c.toml", GLOBALS)]);
    insta::assert_snapshot!(refused(&folder));
}

#[test]
fn files_that_are_no_text_and_directories_without_files_are_told() {
    let empty = folder(&[("lb.conf", GLOBALS)]);
    assert!(refused(&empty).contains("there is no configuration in the directory"), "{}", refused(&empty));
    let folder = folder(&[("a.toml", GLOBALS)]);
    fs::write(folder.path().join("b.toml"), b"\xff\xfe").unwrap();
    assert!(refused(&folder).contains("lb.d/b.toml:1:1"), "{}", refused(&folder));
}
