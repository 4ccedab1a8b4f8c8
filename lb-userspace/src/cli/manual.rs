//! What shells and `man` know about the command line, made of its definition.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Exit, Failure};

/// Prints what a shell needs to complete the command line.
pub fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lb", &mut text);
    match io::Write::write_all(&mut io::stdout(), &text) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot print", e.to_string(), "look at where standard output goes"))
        }
        _ => Ok(Exit::Done),
    }
}

/// Writes a man page (section 8) for each command into the directory.
pub fn manual(directory: &Path) -> Result<Exit, Failure> {
    let mut root = Cli::command();
    root.build();
    write(directory, "lb", &root).map_err(|e| {
        Failure::new(format!("cannot write to {}", directory.display()), e.to_string(), "make the directory first")
    })?;
    Ok(Exit::Done)
}

fn write(directory: &Path, name: &str, command: &Command) -> io::Result<()> {
    let named = command.clone().display_name(name.to_owned());
    let mut page = Vec::new();
    clap_mangen::Man::new(named).section("8").manual("lb").render(&mut page)?;
    fs::write(directory.join(format!("{name}.8")), page)?;
    let shown = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
    command
        .get_subcommands()
        .filter(shown)
        .try_for_each(|sub| write(directory, &format!("{name}-{}", sub.get_name()), sub))
}
