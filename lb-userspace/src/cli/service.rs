//! Services that an operator adds and removes.

use super::{
    Exit, Failure,
    args::{Decision, Global, ServiceAdd, ServiceCommand, Write},
    output::Printer,
    reads, render,
    writes::{seconds, write},
};
use crate::api::model::{FreezeRequest, ServiceChange, ServiceDone, ServiceFrozen, ServiceRequest};

/// `lb service ...`: a list, one service, or one change.
pub fn service(global: &Global, printer: &Printer, command: ServiceCommand) -> Result<Exit, Failure> {
    let (name, change, force, decision, options) = match command {
        ServiceCommand::List { watch } => return reads::service_list(global, printer, watch),
        ServiceCommand::Show { name, watch } => return reads::service_show(global, printer, &name, watch),
        ServiceCommand::Add(add) => {
            let change = ServiceChange::Add { toml: table(&add) };
            (add.name, change, false, add.decision, add.write)
        }
        ServiceCommand::Freeze { name, max, write } => {
            let millis = u64::try_from(max.as_millis()).unwrap_or(u64::MAX).max(1);
            return freeze(global, printer, &name, millis, &write);
        }
        ServiceCommand::Thaw { name, write } => return freeze(global, printer, &name, 0, &write),
        ServiceCommand::Remove { name, force, decision, write } => {
            (name, ServiceChange::Remove, force, decision, write)
        }
    };
    let Decision { reason, lasts } = decision;
    let request = ServiceRequest { change, reason, for_seconds: seconds(lasts), force };
    let done: ServiceDone = write(global, &format!("/v1/services/{name}"), &options, &request)?;
    printer.print(done, render::service_done)?;
    Ok(Exit::Done)
}

fn freeze(global: &Global, printer: &Printer, name: &str, max_millis: u64, options: &Write) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{name}/freeze");
    let done: ServiceFrozen = write(global, &path, options, &FreezeRequest { max_millis })?;
    printer.print(done, render::service_frozen)?;
    Ok(Exit::Done)
}

/// Its table, as it would stand in the file; `None` where nothing is said about it.
fn table(add: &ServiceAdd) -> Option<String> {
    let ServiceAdd { name, listen, backends, settings, checks, .. } = add;
    let listen = (*listen)?;
    let mut text = format!("[[service]]\nname = {}\nlisten = \"{listen}\"\n", quoted(name));
    let lines = |settings: &[(String, String)]| -> String {
        settings.iter().map(|(key, value)| format!("{key} = {}\n", value_of(value))).collect()
    };
    text.push_str(&lines(settings));
    if !checks.is_empty() {
        text.push_str(&format!("[service.health]\n{}", lines(checks)));
    }
    for backend in backends {
        let address = if backend.port() == 0 { backend.ip().to_string() } else { backend.to_string() };
        text.push_str(&format!("[[service.backend]]\naddress = \"{address}\"\n"));
    }
    Some(text)
}

/// Numbers, lists and truth values as they are, everything else as text.
fn value_of(written: &str) -> String {
    let plain = format!("value = {written}").parse::<toml::Table>().is_ok_and(|table| {
        table.len() == 1
            && matches!(
                table.get("value"),
                Some(toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Array(_))
            )
    });
    if plain { written.to_owned() } else { quoted(written) }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_the_reader_accepts() {
        let setting = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let add = ServiceAdd {
            name: "web".to_owned(),
            listen: Some("203.0.113.10:80".parse().unwrap()),
            backends: vec!["10.0.0.1:80".parse().unwrap()],
            settings: vec![setting("mode", "nat"), setting("scheduler", "maglev")],
            checks: vec![
                setting("type", "http"),
                setting("path", "/a\"b"),
                setting("fall", "3"),
                setting("interval", "2s"),
            ],
            decision: Decision::default(),
            write: Default::default(),
        };
        let text = format!("interfaces = [\"eth0\"]\n{}", table(&add).unwrap());
        let config = crate::config::parse("test", &text).unwrap().config;
        assert_eq!((config.services[0].mode.name(), config.services[0].health.fall), ("nat", 3));
        assert_eq!(table(&ServiceAdd { listen: None, ..add }), None);
    }
}
