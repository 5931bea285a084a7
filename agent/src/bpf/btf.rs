//! The running kernel's type information: where its structures keep their fields.
//!
//! aya-ebpf has no CO-RE relocations, and a field's offset differs between
//! kernels, so the agent looks up what its programs read in
//! `/sys/kernel/btf/vmlinux` and passes the offsets as globals. The format is
//! that of Documentation/bpf/btf.rst; it is read in place, with one index of
//! where each type begins (a type refers to others by number). A module's own information (`split
//! BTF`) goes on where the kernel's ends: its types and strings are numbered after the kernel's.

use std::{collections::BTreeMap, fs, io};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MODULES: &str = "/sys/kernel/btf";
const MAGIC: u32 = 0xeb9f;
/// How deep anonymous structures and aliases are followed; kernels stay below 10.
const DEPTH_MAX: u32 = 32;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Type information that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("the kernel gives no type information ({VMLINUX}; CONFIG_DEBUG_INFO_BTF)")]
    Unavailable(#[source] io::Error),
    #[error("the type information in {MODULES} is not BTF as this agent knows it")]
    Malformed,
}

/// The kernel's types.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Length of the kernel's strings.
    strings_end: usize,
    /// Where a module's strings begin in `data`.
    module_strings: usize,
    /// Where type n + 1 begins in `data`; type 0 is `void`.
    types: Vec<u32>,
}

/// A type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    info: u32,
    /// The type referred to, or the size.
    target: u32,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn length(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Bytes after the fixed part.
    fn tail(self) -> usize {
        match self.kind() {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => self.length() * 12,
            KIND_ENUM | KIND_FUNC_PROTO => self.length() * 8,
            _ => 0,
        }
    }
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    ///
    /// The kernel was built without, or the data is not understood.
    pub fn read() -> Result<Self, BtfError> {
        Self::parse(fs::read(VMLINUX).map_err(BtfError::Unavailable)?)
    }

    /// Adds the types of a loaded module, once; one that is built into the kernel has none of its own.
    ///
    /// # Errors
    ///
    /// The module has type information that is not understood.
    pub fn add_module(&mut self, module: &str) -> Result<(), BtfError> {
        match fs::read(format!("{MODULES}/{module}")) {
            Ok(data) => self.append(&data),
            Err(_) => Ok(()),
        }
    }

    fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let mut btf = Self {
            data: Vec::new(),
            strings: 0,
            strings_end: 0,
            module_strings: 0,
            types: Vec::new(),
        };
        btf.append(&data)?;
        btf.strings = btf.module_strings;
        btf.strings_end = read_u32(&data, 20).ok_or(BtfError::Malformed)? as usize;
        Ok(btf)
    }

    /// Takes in a file: header, types, strings.
    fn append(&mut self, file: &[u8]) -> Result<(), BtfError> {
        let word = |at: usize| read_u32(file, at).ok_or(BtfError::Malformed);
        if word(0)? & 0xffff != MAGIC {
            return Err(BtfError::Malformed);
        }
        let begin = self.data.len();
        let header = begin + word(4)? as usize;
        let mut at = header + word(8)? as usize;
        let end = at + word(12)? as usize;
        self.module_strings = header + word(16)? as usize;
        self.data.extend_from_slice(file);
        while at < end {
            let entry = self.type_at(at).ok_or(BtfError::Malformed)?;
            self.types
                .push(u32::try_from(at).map_err(|_| BtfError::Malformed)?);
            at += 12 + entry.tail();
        }
        Ok(())
    }

    /// Byte offset of a field within a structure, by the path of member names.
    ///
    /// Members of anonymous structures are found as in C. `None` if this
    /// kernel has no such structure or field.
    pub fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        self.named(structure)
            .filter(|entry| matches!(entry.kind(), KIND_STRUCT | KIND_UNION))
            .find_map(|entry| self.path_bits(entry, path))
            .map(|bits| bits / 8)
    }

    /// Names of an enum's values, as spelled in the kernel.
    pub fn enum_names(&self, name: &str) -> BTreeMap<u32, String> {
        let Some(entry) = self.named(name).find(|entry| entry.kind() == KIND_ENUM) else {
            return BTreeMap::new();
        };
        (0..entry.length())
            .filter_map(|index| {
                let at = entry.at + 12 + index * 8;
                let name = self.string(read_u32(&self.data, at)?);
                Some((read_u32(&self.data, at + 4)?, name.to_owned()))
            })
            .collect()
    }

    /// Number of arguments of a tracepoint, the context not counted.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<usize> {
        let alias = self
            .named(&format!("btf_trace_{tracepoint}"))
            .find(|entry| entry.kind() == KIND_TYPEDEF)?;
        let pointer = self.by_id(alias.target)?;
        let function = self.by_id(pointer.target)?;
        (pointer.kind() == KIND_PTR && function.kind() == KIND_FUNC_PROTO)
            .then(|| function.length().saturating_sub(1))
    }

    fn path_bits(&self, structure: Type, path: &[&str]) -> Option<u32> {
        let (first, rest) = path.split_first()?;
        let (bits, member) = self.member(structure, first, 0)?;
        if rest.is_empty() {
            return Some(bits);
        }
        let inner = self.through_aliases(member)?;
        Some(bits + self.path_bits(inner, rest)?)
    }

    /// Bit offset and type number of a member.
    fn member(&self, structure: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > DEPTH_MAX || !matches!(structure.kind(), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let has_bitfields = structure.info >> 31 == 1;
        (0..structure.length()).find_map(|index| {
            let at = structure.at + 12 + index * 12;
            let member_name = self.string(read_u32(&self.data, at)?);
            let member = read_u32(&self.data, at + 4)?;
            let position = read_u32(&self.data, at + 8)?;
            // With bit fields the upper byte is the field's width.
            let bits = if has_bitfields {
                position & 0x00ff_ffff
            } else {
                position
            };
            if member_name == name {
                return Some((bits, member));
            }
            if !member_name.is_empty() {
                return None;
            }
            let inner = self.through_aliases(member)?;
            let (inner_bits, found) = self.member(inner, name, depth + 1)?;
            Some((bits + inner_bits, found))
        })
    }

    fn through_aliases(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let entry = self.by_id(id)?;
            match entry.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = entry.target;
                }
                _ => return Some(entry),
            }
        }
        None
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Type> + 'a {
        self.types
            .iter()
            .filter_map(|at| self.type_at(*at as usize))
            .filter(move |entry| self.string(entry.name) == name)
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let index = id.checked_sub(1)? as usize;
        self.type_at(*self.types.get(index)? as usize)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        Some(Type {
            at,
            name: read_u32(&self.data, at)?,
            info: read_u32(&self.data, at + 4)?,
            target: read_u32(&self.data, at + 8)?,
        })
    }

    /// The string at an offset of the string section; empty if there is none.
    fn string(&self, offset: u32) -> &str {
        let offset = offset as usize;
        let at = match offset.checked_sub(self.strings_end) {
            Some(offset) => self.module_strings + offset,
            None => self.strings + offset,
        };
        let tail = self.data.get(at..).unwrap_or_default();
        let end = tail.iter().position(|byte| *byte == 0).unwrap_or(0);
        std::str::from_utf8(&tail[..end]).unwrap_or_default()
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_is_read() {
        let btf = match Btf::read() {
            Ok(btf) => btf,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        assert_eq!(btf.offset("list_head", &["prev"]), Some(8));
        // Through a structure by value, and through an anonymous union.
        assert!(btf.offset("net", &["ns", "inum"]).is_some_and(|at| at > 0));
        assert!(btf.offset("sk_buff", &["dev"]).is_some_and(|at| at > 0));
        assert_eq!(btf.offset("list_head", &["no_such_field"]), None);
        assert_eq!(btf.offset("no_such_struct", &["prev"]), None);
        assert_eq!(btf.tracepoint_arguments("qdisc_enqueue"), Some(3));
        let reasons = btf.enum_names("skb_drop_reason");
        assert!(
            reasons
                .values()
                .any(|name| name == "SKB_DROP_REASON_QDISC_DROP")
        );
    }

    /// A file of one structure: its name, and one member of the given type at a bit offset.
    fn file(strings: &[u8], name: u32, member: (u32, u32, u32)) -> Vec<u8> {
        // An int (type 1 of the file) and the structure (type 2).
        let types = [
            [1, KIND_INT << 24, 4, 32].as_slice(),
            &[
                name,
                KIND_STRUCT << 24 | 1,
                64,
                member.0,
                member.1,
                member.2,
            ],
        ]
        .concat();
        let length = |n: usize| u32::try_from(n).unwrap();
        let header = [
            MAGIC | 1 << 16,
            24,
            0,
            length(types.len() * 4),
            length(types.len() * 4),
            length(strings.len()),
        ];
        let words = header.iter().chain(&types).flat_map(|w| w.to_ne_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn a_modules_types_go_on_where_the_kernels_end() {
        // In the kernel: struct base { int field at 4; }.
        let kernel = file(b"\0int\0base\0field\0", 5, (10, 1, 32));
        let mut btf = Btf::parse(kernel).unwrap();
        assert_eq!(btf.offset("base", &["field"]), Some(4));
        // In the module: struct own { struct base inner at 8; }, the kernel's type 2.
        let module = file(b"own\0inner\0", 16, (20, 2, 64));
        btf.append(&module).unwrap();
        assert_eq!(btf.offset("own", &["inner"]), Some(8));
        assert_eq!(btf.offset("own", &["inner", "field"]), Some(12));
        assert_eq!(btf.offset("base", &["field"]), Some(4));
        assert_eq!(btf.offset("own", &["field"]), None);
        assert!(matches!(btf.append(b"no file"), Err(BtfError::Malformed)));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(Btf::parse(vec![0; 64]), Err(BtfError::Malformed)));
        let mut cut = vec![0; 24];
        cut[..2].copy_from_slice(&0xeb9f_u16.to_ne_bytes());
        cut[4..8].copy_from_slice(&24_u32.to_ne_bytes());
        cut[12..16].copy_from_slice(&48_u32.to_ne_bytes());
        assert!(matches!(Btf::parse(cut), Err(BtfError::Malformed)));
    }
}
