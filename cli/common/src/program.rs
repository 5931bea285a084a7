//! Arguments and endings.

use clap::Parser;
use std::process::ExitCode;

/// Exit code for bad arguments or a bad configuration (EX_USAGE of sysexits.h). Not clap's 2, which a
/// monitoring check reads as critical.
pub const EXIT_USAGE: u8 = 64;

/// The arguments of the program; prints help and ends where that is asked for.
///
/// # Errors
/// They are wrong, which has been said: the code to end with.
pub fn arguments<T: Parser>() -> Result<T, ExitCode> {
    match T::try_parse() {
        Ok(arguments) => Ok(arguments),
        Err(help) if !help.use_stderr() => help.exit(),
        Err(error) => {
            error.print().ok();
            Err(ExitCode::from(EXIT_USAGE))
        }
    }
}

/// An error with its causes, each once: some name their cause themselves.
#[must_use]
pub fn said(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .fold(error.to_string(), |text, cause| {
            let cause = cause.to_string();
            if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read x: no such file");
        assert_eq!(said(&error), "cannot read x: no such file");
        let deeper = Err::<(), _>(error).context("start").unwrap_err();
        assert_eq!(said(&deeper), "start: cannot read x: no such file");
    }
}
