//! Runs ip, tc, ethtool and the like, and turns a failure into an error that shows what was said.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `program` with `args` and returns its standard output.
///
/// # Errors
/// When it cannot be started or exits non-zero; the message holds its standard error.
pub fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<String> {
    run_with_input(program, args, "")
}

/// As [`run`], with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input<A: AsRef<OsStr>>(program: &str, args: &[A], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", search_path())
        // Its own group: Ctrl-C must not cut a half-built or half-removed fabric short.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early shows why below; the broken pipe adds nothing.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let shown: Vec<_> = args
            .iter()
            .map(|a| a.as_ref().to_string_lossy().into_owned())
            .collect();
        bail!(
            "{program} {} ({}): {}",
            shown.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a batch of `ip` (or `tc`) commands, one a line, as a single process.
///
/// # Errors
/// At the first command that fails.
pub fn batch(program: &str, lines: &str) -> Result<String> {
    if lines.is_empty() {
        return Ok(String::new());
    }
    run_with_input(program, &["-batch", "-"], lines).with_context(|| format!("{program} batch"))
}

/// PATH, and where Debian has ip, tc and ethtool: `su` without a dash leaves these out.
#[must_use]
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/sbin:/sbin");
    path
}
