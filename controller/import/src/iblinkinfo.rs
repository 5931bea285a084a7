//! `iblinkinfo`: links by switch, with what each could be.
//!
//! Format: `print_port` of infiniband-diags/iblinkinfo.c. It prints no GUID of the far end, so
//! elements are known by their lids.

use crate::discovered::{Account, Discovered, Element, Key, lid};
use crate::fabric::Fabric;
use crate::guid::Guid;
use crate::names;
use crate::rate;
use crate::text::{Cursor, Error, lines};

/// Reads the output of `iblinkinfo`. Downgraded links, which it marks "( Could be ...)", are findings.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse(text: &str) -> Result<Fabric, Error> {
    let mut found = Discovered::default();
    let mut section = None;
    for mut cursor in lines(text) {
        if cursor.is_empty() || cursor.line().starts_with('#') {
            continue;
        }
        if let Some(heading) = heading(&mut cursor)? {
            section = Some(heading);
        } else {
            let Some(near) = &section else {
                return Err(cursor.error("a Switch: or CA: line before the first port"));
            };
            port(&mut cursor, near, &mut found)?;
        }
    }
    Ok(found.fabric())
}

struct Heading {
    switch: bool,
    guid: Option<Guid>,
    description: String,
}

/// `Switch: 0xGUID DESCRIPTION:`, `CA: DESCRIPTION:`
fn heading(cursor: &mut Cursor<'_>) -> Result<Option<Heading>, Error> {
    let switch = cursor.take("Switch: ");
    if !switch && !cursor.take("CA: ") && !cursor.take("Router: ") {
        return Ok(None);
    }
    let guid = if cursor.rest().starts_with("0x") {
        Some(cursor.guid("")?)
    } else {
        None
    };
    let rest = cursor.rest().trim();
    let description = rest.strip_suffix(':').unwrap_or(rest).to_owned();
    Ok(Some(Heading {
        switch,
        guid,
        description,
    }))
}

/// `10 21[  ] ==( 4X 25.78125 Gbps Active/  LinkUp)==> 40 1[  ] "node3 HCA-2" ( Could be 53.125 Gbps)`
fn port(cursor: &mut Cursor<'_>, near: &Heading, found: &mut Discovered) -> Result<(), Error> {
    cursor.skip_spaces();
    let mut guid = near.guid;
    if cursor.rest().starts_with("0x") {
        let port_guid = cursor.guid("")?;
        guid = guid.or(Some(port_guid));
        cursor.skip_spaces();
        if cursor.take("\"") {
            cursor.until("\"", "the closing quote of a description")?;
        }
    }
    let own_lid: u16 = cursor.number("a lid of at most 65535")?;
    let number = bracketed(cursor)?;
    cursor.skip_spaces();
    cursor.expect("==(", "==( and the state of the link")?;
    let state = cursor.until(")==>", ")==> after the state of the link")?;
    let key = match (lid(own_lid), guid) {
        (Some(lid), _) => Key::Lid(lid),
        (None, Some(guid)) => Key::Guid(guid),
        (None, None) => return Err(cursor.error("a lid or a GUID of the port")),
    };
    found.elements.insert(
        key,
        Element {
            switch: near.switch,
            description: near.description.clone(),
            guid,
            lid: lid(own_lid),
            ..Element::default()
        },
    );
    if state.contains("Down/") {
        found.ports_down += 1;
        return Ok(());
    }
    let peer_lid: u16 = cursor.number("the far end's lid of at most 65535")?;
    let peer_port = bracketed(cursor)?;
    cursor.skip_spaces();
    cursor.expect("\"", "the far end's description in quotes")?;
    let description = cursor.until_last("\"", "the closing quote of the description")?;
    let Some(peer) = lid(peer_lid).map(Key::Lid) else {
        found.ports_down += 1;
        return Ok(());
    };
    // The far end's own section tells more, before or after.
    found.elements.entry(peer).or_insert_with(|| Element {
        switch: names::is_switch(description),
        description: description.to_owned(),
        lid: lid(peer_lid),
        ..Element::default()
    });
    found.accounts.push(account(
        (key, number),
        (peer, peer_port),
        state,
        cursor.rest(),
    ));
    Ok(())
}

fn bracketed(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let port = cursor.number("a port number")?;
    cursor.expect("[", "[ ] after the port number")?;
    cursor.until("]", "] after the port number")?;
    Ok(port)
}

/// Width and speed out of `4X 25.78125 Gbps Active/  LinkUp`, and what they could be.
fn account(from: (Key, u32), to: (Key, u32), state: &str, remarks: &str) -> Account {
    let mut words = state.split_whitespace();
    let lanes = words.next().and_then(rate::lanes);
    let lane = words.next().and_then(rate::generation);
    let (mut could_lanes, mut could_lane) = (lanes, lane);
    for could in remarks.split("Could be ").skip(1) {
        let word = could.split([' ', ')']).next().unwrap_or("");
        could_lanes = rate::lanes(word).or(could_lanes);
        could_lane = rate::generation(word).or(could_lane);
    }
    let bps = |lanes: Option<u8>, lane: Option<(&'static str, f64)>| {
        Some(rate::link_bps(lanes?, lane?.1))
    };
    let rate_bps = bps(lanes, lane);
    let could_be_bps = bps(could_lanes, could_lane).filter(|could| Some(*could) > rate_bps);
    Account {
        from,
        to,
        lanes,
        speed: lane.map(|l| l.0),
        rate_bps,
        could_be_bps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Role;

    const TEXT: &str = "\
CA: worker1 mlx5_0:
      0x0c42a10300751b5e      3    1[  ] ==( 4X      53.125 Gbps Active/  LinkUp)==>       7   12[  ] \"MF0;leaf1:MQM8700/U1\" ( )
Switch: 0x0002c903007b78b0 MF0;leaf1:MQM8700/U1:
           7   12[  ] ==( 4X      53.125 Gbps Active/  LinkUp)==>       3    1[  ] \"worker1 mlx5_0\" ( )
           7   13[  ] ==( 1X      53.125 Gbps Active/  LinkUp)==>       4    1[  ] \"worker2 mlx5_0\" ( Could be 4X )
           7   14[  ] ==(                Down/ Polling)==>             [  ] \"\" ( )
";

    #[test]
    fn both_ends_of_a_cable_are_one_link_and_a_narrow_one_is_found() {
        let fabric = parse(TEXT).unwrap();
        assert_eq!(
            (fabric.count(Role::Host), fabric.count(Role::Switch)),
            (2, 1)
        );
        assert_eq!(fabric.links.len(), 2);
        assert_eq!(fabric.links[0].rate_bps, Some(200e9));
        assert_eq!(fabric.links[1].rate_bps, Some(50e9));
        assert_eq!(fabric.ports_down, 1);
        let [finding] = fabric.findings.as_slice() else {
            panic!("{:?}", fabric.findings);
        };
        assert!(
            finding
                .text
                .contains("50Gbit where both ends can do 200Gbit"),
            "{}",
            finding.text
        );
    }

    #[test]
    fn an_error_names_its_place() {
        let error = parse("Switch: 0x1 a:\n  7   x[  ]").unwrap_err();
        assert_eq!((error.line, error.column), (2, 7), "{error}");
    }
}
