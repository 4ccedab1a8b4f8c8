//! What the command line writes for shells and for `man`.

use std::{
    fs,
    process::{Command, Output},
};

fn lb(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_lb")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn every_shell_gets_completions_that_it_can_read() {
    for (shell, check) in [("bash", Some("bash")), ("zsh", None), ("fish", None), ("elvish", None)] {
        let text = String::from_utf8(lb(&["completions", shell]).stdout).unwrap();
        assert!(text.contains("support-bundle"), "{shell}: {text}");
        let Some(program) = check else { continue };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lb");
        fs::write(&file, text).unwrap();
        let read = Command::new(program).arg("-n").arg(&file).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    }
}

#[test]
fn every_command_has_a_man_page_with_its_options() {
    let dir = tempfile::tempdir().unwrap();
    lb(&["manual", dir.path().to_str().unwrap()]);
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(page("lb.8").contains("lb\\-backend(8)") || page("lb.8").contains("backend"));
    assert!(page("lb-backend-drain.8").contains("force"));
    assert!(page("lb-run.8").contains("replace"));
    assert!(!dir.path().join("lb-manual.8").exists(), "hidden");
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{}", path.display());
    }
}
