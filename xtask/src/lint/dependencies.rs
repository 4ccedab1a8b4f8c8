//! Holds every package of the lock file against `deny.toml`. A check of our own: cargo-deny takes
//! longer to install than everything else here together; it reads the same file for whoever has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::shell;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check() -> Result<()> {
    let text = fs::read_to_string(shell::root().join("deny.toml")).context("deny.toml")?;
    let rules = Rules::read(&text)?;
    let metadata = shell::output(shell::cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let findings: Vec<_> = packages.iter().flat_map(|package| rules.findings(package)).collect();
    if findings.is_empty() {
        println!("{} packages", packages.len());
    }
    for twice in several_versions(packages) {
        println!("warning: {twice}");
    }
    super::none_found(&findings)
}

struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
}

impl Rules {
    fn read(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("deny.toml")?;
        let list = |section: &str, key: &str| -> Result<Vec<toml::Value>> {
            let value = table.get(section).and_then(|section| section.get(key)).and_then(toml::Value::as_array);
            Ok(value.with_context(|| format!("deny.toml: no list {key} in [{section}]"))?.clone())
        };
        let name = |value: &toml::Value| value.get("name").unwrap_or(value).as_str().map(str::to_owned);
        Ok(Self {
            licences: list("licenses", "allow")?.iter().filter_map(name).collect(),
            banned: list("bans", "deny")?.iter().filter_map(name).collect(),
        })
    }

    fn findings(&self, package: &Value) -> Vec<String> {
        let name = package["name"].as_str().unwrap_or("?");
        let title = format!("{name} {}", package["version"].as_str().unwrap_or("?"));
        let mut findings = Vec::new();
        match package["license"].as_str() {
            Some(licence) if self.allows(licence) => {}
            Some(licence) => findings.push(format!("{title}: licence `{licence}` is not in deny.toml")),
            None => findings.push(format!("{title}: names no licence")),
        }
        // Without a source it is a package of this workspace.
        if package["source"].as_str().is_some_and(|source| source != REGISTRY) {
            findings.push(format!("{title}: comes from {}, not from crates.io", package["source"]));
        }
        if self.banned.contains(name) {
            findings.push(format!("{title}: is banned in deny.toml"));
        }
        let wildcards = package["dependencies"].as_array().into_iter().flatten();
        for dependency in wildcards.filter(|d| d["req"] == "*" && d["path"].is_null() && package["source"].is_null()) {
            findings.push(format!("{title}: takes any version of {}", dependency["name"]));
        }
        findings
    }

    /// SPDX expressions, and the old `MIT/Apache-2.0`. AND binds tighter than OR.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut words = spaced.split_whitespace().peekable();
        let allowed = self.any_of(&mut words);
        allowed && words.next().is_none()
    }

    fn any_of<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut allowed = self.all_of(words);
        while words.next_if_eq(&"OR").is_some() {
            allowed |= self.all_of(words);
        }
        allowed
    }

    fn all_of<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut allowed = self.one(words);
        while words.next_if_eq(&"AND").is_some() {
            allowed &= self.one(words);
        }
        allowed
    }

    fn one<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let Some(word) = words.next() else { return false };
        if word == "(" {
            let allowed = self.any_of(words);
            return words.next_if_eq(&")").is_some() && allowed;
        }
        let name = match words.next_if_eq(&"WITH") {
            Some(_) => format!("{word} WITH {}", words.next().unwrap_or_default()),
            None => word.to_owned(),
        };
        self.licences.contains(&name)
    }
}

fn several_versions(packages: &[Value]) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        if let (Some(name), Some(version)) = (package["name"].as_str(), package["version"].as_str()) {
            versions.entry(name).or_default().push(version);
        }
    }
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    several.map(|(name, versions)| format!("{name} in {} versions: {}", versions.len(), versions.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::read("[licenses]\nallow = ['MIT', 'Apache-2.0', 'Apache-2.0 WITH LLVM-exception']\n[bans]\ndeny = [{name = 'bad'}]")
            .unwrap()
    }

    #[test]
    fn an_expression_is_allowed_when_one_choice_is_allowed_whole() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-2.0/MIT",
            "(GPL-2.0 OR MIT) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert!(rules().allows(good), "{good}");
        }
        for bad in
            ["GPL-3.0", "MIT AND GPL-3.0", "MIT AND (GPL-2.0 OR X)", "MIT OR X)", "", "MIT WITH X", "MIT MIT", "(MIT"]
        {
            assert!(!rules().allows(bad), "{bad}");
        }
    }

    #[test]
    fn a_banned_package_another_source_and_no_licence_are_found() {
        let package = serde_json::json!({ "name": "bad", "version": "1.0.0", "source": "git+https://example.com/bad" });
        let findings = rules().findings(&package).join("\n");
        for part in ["names no licence", "not from crates.io", "is banned"] {
            assert!(findings.contains(part), "{findings}");
        }
        let fine = serde_json::json!({ "name": "x", "version": "1.0.0", "source": REGISTRY, "license": "MIT" });
        assert_eq!(rules().findings(&fine), Vec::<String>::new());
    }
}
