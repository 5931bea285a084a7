//! `ibnetdiscover`: the topology file, and the list of ports of `ibnetdiscover -p`.
//!
//! Formats: `out_switch`, `out_ca`, `out_switch_port` and `out_ca_port` of
//! infiniband-diags/ibnetdiscover.c; `dump_ports_report` for the list.

use crate::discovered::{Account, Discovered, Element, Key, lid};
use crate::fabric::Fabric;
use crate::guid::Guid;
use crate::rate;
use crate::text::{Cursor, Error, lines};
use std::collections::BTreeMap;

/// A generation's name and the rate of its lanes.
type Generation = (&'static str, f64);

/// Reads the output of `ibnetdiscover`.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse(text: &str) -> Result<Fabric, Error> {
    let mut found = Discovered {
        both_ends: true,
        ..Discovered::default()
    };
    let mut section = None;
    let mut device_id = None;
    for mut cursor in lines(text) {
        let line = cursor.line();
        if line.trim().is_empty() {
            device_id = None;
        } else if line.starts_with('#') {
        } else if line.starts_with('[') {
            let Some((key, switch)) = section else {
                return Err(cursor.error("a Switch, Ca or Rt line before the first port"));
            };
            port(&mut cursor, key, switch, &mut found)?;
        } else if cursor.take("devid=") {
            device_id = Some(hexadecimal(&cursor)?);
        } else if [
            "vendid=",
            "sysimgguid=",
            "switchguid=",
            "caguid=",
            "rtguid=",
        ]
        .iter()
        .any(|k| cursor.take(k))
        {
            // The node's GUID comes again in its own line.
        } else if line.starts_with("Chassis")
            || line.starts_with("Non-Chassis")
            || line.starts_with("Spine")
            || line.starts_with("Line")
        {
            // Headings of `ibnetdiscover -g`.
        } else {
            section = Some(element(&mut cursor, device_id.take(), &mut found)?);
        }
    }
    Ok(found.fabric())
}

fn hexadecimal(cursor: &Cursor<'_>) -> Result<u32, Error> {
    let digits = cursor.rest().trim();
    u32::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16)
        .map_err(|_| cursor.error("a device id in hexadecimal"))
}

/// `Switch 41 "S-GUID" # "DESCRIPTION" enhanced port 0 lid 1600 lmc 0`
fn element(
    cursor: &mut Cursor<'_>,
    device_id: Option<u32>,
    found: &mut Discovered,
) -> Result<(Key, bool), Error> {
    let switch = if cursor.take("Switch") || cursor.take("Rt") {
        true
    } else if cursor.take("Ca") {
        false
    } else {
        return Err(cursor.error("Switch, Ca, Rt, [PORT] or KEY=VALUE"));
    };
    cursor.number::<u32>("the number of ports")?;
    cursor.skip_spaces();
    let guid = quoted_guid(cursor)?.1;
    cursor.skip_spaces();
    cursor.expect("#", "# and a description")?;
    let description = description(cursor)?;
    cursor.until("lid ", "").ok();
    let node_lid = if switch {
        cursor.number("").ok().and_then(lid)
    } else {
        None
    };
    let key = Key::Guid(guid);
    let element = found.elements.entry(key).or_default();
    element.switch = switch;
    element.description = description.to_owned();
    element.device_id = device_id;
    element.guid = Some(guid);
    element.lid = element.lid.or(node_lid);
    Ok((key, switch))
}

/// `"S-0c42a103009d8096"`: whether it is a switch (or router), and its GUID.
fn quoted_guid(cursor: &mut Cursor<'_>) -> Result<(bool, Guid), Error> {
    cursor.expect("\"", "a quoted name such as \"S-0002c90300000001\"")?;
    let switch = if cursor.take("S-") || cursor.take("R-") {
        true
    } else if cursor.take("H-") {
        false
    } else {
        return Err(cursor.error("S-, H- or R- and a GUID"));
    };
    Ok((switch, cursor.guid("\"")?))
}

/// From the first quote to the last: descriptions hold what people write.
fn description<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Error> {
    cursor.skip_spaces();
    cursor.expect("\"", "a quoted description")?;
    cursor.until_last("\"", "the closing quote of the description")
}

/// A port of a switch: `[1] "H-GUID"[1](PORTGUID) # "DESCRIPTION" lid 837 4xHDR`; of an adapter:
/// `[1](PORTGUID) "S-GUID"[2] # lid 3303 lmc 0 "DESCRIPTION" lid 4490 4xHDR`.
fn port(
    cursor: &mut Cursor<'_>,
    key: Key,
    switch: bool,
    found: &mut Discovered,
) -> Result<(), Error> {
    let from = (key, bracketed(cursor)?);
    if let Some(guid) = port_guid(cursor)?
        && let Some(element) = found.elements.get_mut(&key)
    {
        element.port_guids.insert(from.1, guid);
    }
    cursor.skip_spaces();
    let (peer_switch, peer) = quoted_guid(cursor)?;
    let to = (Key::Guid(peer), bracketed(cursor)?);
    let peer_port_guid = port_guid(cursor)?;
    cursor.skip_spaces();
    cursor.expect("#", "# and the far end's description")?;
    cursor.skip_spaces();
    if !switch {
        cursor.expect("lid ", "lid and a number")?;
        let own: u16 = cursor.number("a lid of at most 65535")?;
        if let Some(element) = found.elements.get_mut(&key) {
            element.lid = element.lid.or(lid(own));
        }
        cursor.until("\"", "a quoted description")?;
    } else {
        cursor.expect("\"", "a quoted description")?;
    }
    let peer_description = cursor.until_last("\"", "the closing quote of the description")?;
    cursor.skip_spaces();
    cursor.expect("lid ", "lid and a number")?;
    let peer_lid: u16 = cursor.number("a lid of at most 65535")?;
    let (lanes, speed) = width_and_speed(cursor)?;
    // The far end's own section may come later, or never.
    let element = found.elements.entry(to.0).or_insert_with(|| Element {
        switch: peer_switch,
        description: peer_description.to_owned(),
        guid: Some(peer),
        ..Element::default()
    });
    element.lid = element.lid.or(lid(peer_lid));
    if let Some(guid) = peer_port_guid {
        element.port_guids.insert(to.1, guid);
    }
    found.accounts.push(account(from, to, lanes, speed));
    Ok(())
}

fn account(from: (Key, u32), to: (Key, u32), lanes: u8, speed: Option<Generation>) -> Account {
    Account {
        from,
        to,
        lanes: Some(lanes),
        speed: speed.map(|s| s.0),
        rate_bps: speed.map(|s| rate::link_bps(lanes, s.1)),
        could_be_bps: None,
    }
}

/// `[12]`, and on a modular switch `[12][ext 3]`.
fn bracketed(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    cursor.expect("[", "[ and a port number")?;
    let port = cursor.number("a port number")?;
    cursor.expect("]", "] after the port number")?;
    if cursor.take("[ext ") {
        cursor.until("]", "] after the external port")?;
    }
    Ok(port)
}

/// `(c42a10300303dbe)`, without its leading zeros.
fn port_guid(cursor: &mut Cursor<'_>) -> Result<Option<Guid>, Error> {
    if cursor.take("(") {
        return cursor.guid(")").map(Some);
    }
    Ok(None)
}

/// `4xHDR`; a generation newer than this reader has no rate.
fn width_and_speed(cursor: &mut Cursor<'_>) -> Result<(u8, Option<Generation>), Error> {
    let what = "width and speed such as 4xHDR";
    cursor.skip_spaces();
    let here = cursor.clone();
    let word = cursor.word(what)?;
    let split = word.find(['x', 'X']).map_or(0, |n| n + 1);
    let (width, speed) = word.split_at(split);
    let lanes = rate::lanes(width).ok_or_else(|| here.error(what))?;
    Ok((lanes, rate::generation(speed)))
}

/// Reads the list of ports of `ibnetdiscover -p`.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse_list(text: &str) -> Result<Fabric, Error> {
    let mut found = Discovered::default();
    for mut cursor in lines(text) {
        if !cursor.is_empty() && !cursor.line().starts_with('#') {
            list_line(&mut cursor, &mut found)?;
        }
    }
    // A list of one end of each cable is usual: hosts are left out with `--switch_list`.
    Ok(found.fabric())
}

/// `CA 134 1 0xGUID 4x EDR - SW 1719 10 0xGUID ( 'DESCRIPTION' - 'DESCRIPTION' )`, and of a port
/// that is down, with a speed that means nothing, `SW 1781 80 0xGUID 4x SDR 'DESCRIPTION'`.
fn list_line(cursor: &mut Cursor<'_>, found: &mut Discovered) -> Result<(), Error> {
    let from = list_port(cursor)?;
    let here = cursor.clone();
    let width = cursor.word("a width such as 4x")?;
    let lanes = rate::lanes(width).ok_or_else(|| here.error("a width such as 4x"))?;
    let speed = rate::generation(cursor.word("a speed such as HDR")?);
    cursor.skip_spaces();
    if !cursor.take("- ") {
        let description = cursor.rest().trim().trim_matches('\'').trim();
        known(found, &from, description);
        found.ports_down += 1;
        return Ok(());
    }
    let to = list_port(cursor)?;
    cursor.skip_spaces();
    cursor.expect("( '", "( and two quoted descriptions")?;
    let near = cursor.until("' - '", "' - ' between two descriptions")?;
    let far = cursor.until_last("' )", "' ) after the second description")?;
    known(found, &from, near);
    known(found, &to, far);
    found.accounts.push(account(from.at, to.at, lanes, speed));
    Ok(())
}

struct ListPort {
    switch: bool,
    lid: u16,
    at: (Key, u32),
}

fn list_port(cursor: &mut Cursor<'_>) -> Result<ListPort, Error> {
    cursor.skip_spaces();
    let switch = if cursor.take("SW ") || cursor.take("RT ") {
        true
    } else if cursor.take("CA ") {
        false
    } else {
        return Err(cursor.error("CA, SW or RT"));
    };
    let lid = cursor.number("a lid of at most 65535")?;
    let port = cursor.number("a port number")?;
    cursor.skip_spaces();
    let guid = cursor.guid("")?;
    Ok(ListPort {
        switch,
        lid,
        at: (Key::Guid(guid), port),
    })
}

fn known(found: &mut Discovered, port: &ListPort, description: &str) {
    let Key::Guid(guid) = port.at.0 else { return };
    found.elements.entry(port.at.0).or_insert_with(|| Element {
        switch: port.switch,
        description: description.trim().to_owned(),
        device_id: None,
        guid: Some(guid),
        lid: lid(port.lid),
        port_guids: BTreeMap::new(),
    });
}
