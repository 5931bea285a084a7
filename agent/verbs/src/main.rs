//! Asynchronous events of verbs devices, and pings between them.
//!
//! A program of its own because it links libibverbs, which not every node has, and runs vendors'
//! libraries, which may hang or crash: `weir-agent` starts it, reads its lines and starts it again.

mod address;
mod budget;
mod byhand;
mod completion;
mod device;
mod events;
mod input;
mod memory;
mod neighbours;
mod out;
mod packet;
mod port;
mod privileges;
mod prober;
mod queues;
mod resolver;
mod serve;
mod system;
mod ways;
mod worker;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "weir-verbs",
    version,
    about = "Events of verbs devices and pings between them, for weir-agent"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the devices and their ports as a JSON array
    List {
        #[command(flatten)]
        devices: Devices,
    },
    /// Print events, endpoints and reports as JSON lines; orders are read as JSON lines until standard input ends
    Serve {
        #[command(flatten)]
        devices: Devices,
    },
    /// Answer pings until standard input ends; prints the endpoints that others may ping
    Listen {
        #[command(flatten)]
        devices: Devices,
    },
    /// Ping one endpoint, and print a report as JSON
    Ping(byhand::Ping),
}

#[derive(Debug, clap::Args)]
struct Devices {
    /// Devices that are left alone, such as mlx5_1 or mlx5_*; may be given more than once
    #[arg(long = "device-exclude", value_delimiter = ',', value_name = "NAME")]
    device_exclude: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    privileges::drop_all().context("privileges cannot be given up")?;
    match arguments.command {
        Command::List { devices } => byhand::list(&devices.device_exclude),
        // Who gives no orders only listens.
        Command::Serve { devices } | Command::Listen { devices } => {
            Ok(serve::serve(devices.device_exclude)?)
        }
        Command::Ping(ping) => byhand::ping(&ping),
    }
}
