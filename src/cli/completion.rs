//! `forebay completion SHELL`: a script with which a shell completes commands, flags and their values.
//!
//! Made from the command line's own description, so that it cannot fall behind it.

use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// The shell to make it for.
#[derive(Debug, Args)]
#[command(after_help = "For example:
  forebay completion bash > ~/.local/share/bash-completion/completions/forebay
  forebay completion zsh  > ~/.zfunc/_forebay        (with ~/.zfunc in fpath)
  forebay completion fish > ~/.config/fish/completions/forebay.fish")]
pub struct CompletionArgs {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the script to stdout.
///
/// # Errors
/// When stdout can't be written.
pub fn run(args: &CompletionArgs, command: &Command) -> anyhow::Result<()> {
    std::io::stdout().write_all(&script(args.shell, command)).context("writing to stdout")
}

/// Of what people are to see: the generators offer hidden commands too.
fn script(shell: Shell, command: &Command) -> Vec<u8> {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut shown =
        Command::new("forebay").version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true).subcommands(shown);
    let mut script = Vec::new();
    generate(shell, &mut shown, "forebay", &mut script);
    script
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command as Process, Stdio};

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// What bash offers after `words`, the last of them begun.
    fn offered(script: &str, words: &[&str]) -> Vec<String> {
        let (command, begun, before) = (words[0], words[words.len() - 1], words[words.len() - 2]);
        let ask = format!(
            "COMP_WORDS=({}); COMP_CWORD={}; _forebay {command} '{begun}' {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
        );
        let output = Process::new("bash")
            .args(["--norc", "-c", &format!("{script}\n{ask}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_offers_commands_flags_and_values() {
        let script = String::from_utf8(script(Shell::Bash, &Cli::command())).unwrap();
        assert_eq!(offered(&script, &["forebay", "pro"]), ["proxy", "probe"]);
        assert_eq!(offered(&script, &["forebay", "volume", "cre"]), ["create"]);
        assert_eq!(offered(&script, &["forebay", "get", "--gr"]), ["--group"]);
        assert_eq!(offered(&script, &["forebay", "completion", "z"]), ["zsh"]);
    }
}
