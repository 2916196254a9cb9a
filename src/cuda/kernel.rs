//! What is launched: a kernel of one of the sources, with its defines and its geometry.

use std::fmt;

use super::fnv::Fnv;

/// One launch of a kernel, without the arguments.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub source: Source,
    /// That of the function in the source.
    pub name: &'static str,
    /// What the source is compiled with, `-Dname=value`.
    pub defines: Vec<(&'static str, Define)>,
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// The value of a define.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Define {
    Number(i64),
    /// A type of the prelude.
    Element(&'static str),
}

impl fmt::Display for Define {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Element(name) => f.write_str(name),
        }
    }
}

impl Kernel {
    /// Of all that decides what the compiler makes: the text of the source, and the defines.
    pub fn hash(&self) -> String {
        let hash = self.source.fnv();
        let add =
            |hash: Fnv, (name, value): &(&str, Define)| hash.text(name).text(&value.to_string());
        self.defines.iter().fold(hash, add).hex()
    }
}

/// Files that are compiled as one: `text` is their concatenation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Norm,
    Activation,
    Reduce,
    AttentionSmall,
    AttentionLong,
    Softmax,
    Primitives,
}

/// The name of a file and its contents.
type File = (&'static str, &'static str);

macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("kernels/", $name)))
    };
}

const PRELUDE: File = file!("prelude.cu");
const TILES: File = file!("tiles.cu");

impl Source {
    pub const ALL: [Self; 7] = [
        Self::Norm,
        Self::Activation,
        Self::Reduce,
        Self::AttentionSmall,
        Self::AttentionLong,
        Self::Softmax,
        Self::Primitives,
    ];

    /// That of its last file, without `.cu`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::Activation => "activation",
            Self::Reduce => "reduce",
            Self::AttentionSmall => "attention_small",
            Self::AttentionLong => "attention_long",
            Self::Softmax => "softmax",
            Self::Primitives => "primitives",
        }
    }

    fn files(self) -> &'static [File] {
        match self {
            Self::Norm => &[PRELUDE, file!("norm.cu")],
            Self::Activation => &[PRELUDE, file!("activation.cu")],
            Self::Reduce => &[PRELUDE, file!("reduce.cu")],
            Self::AttentionSmall => &[PRELUDE, TILES, file!("attention_small.cu")],
            Self::AttentionLong => &[PRELUDE, TILES, file!("attention_long.cu")],
            Self::Softmax => &[PRELUDE, file!("softmax.cu")],
            Self::Primitives => &[PRELUDE, file!("primitives.cu")],
        }
    }

    /// What the compiler is given; its messages name the files.
    pub fn text(self) -> String {
        let parts = self.files().iter();
        parts.flat_map(|(name, text)| ["#line 1 \"", name, "\"\n", text]).collect()
    }
}

impl Source {
    /// The hash of its text, by which the ledger lists it.
    pub fn hash(self) -> String {
        self.fnv().hex()
    }

    fn fnv(self) -> Fnv {
        Fnv::new().text(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(source: Source, defines: &[(&'static str, &'static str)]) -> Kernel {
        let define = |&(name, value): &(_, _)| (name, Define::Element(value));
        let defines = defines.iter().map(define).collect();
        Kernel { source, name: "any", defines, grid: [1; 3], block: 32, shared: 0 }
    }

    #[test]
    fn a_hash_knows_the_text_and_the_defines_and_no_geometry() {
        let plain = kernel(Source::Norm, &[("STREAM", "bf16")]);
        let wide = Kernel { grid: [9; 3], shared: 1, name: "another", ..plain.clone() };
        assert_eq!(plain.hash(), wide.hash());
        assert_ne!(plain.hash(), kernel(Source::Norm, &[("STREAM", "f16")]).hash());
        assert_ne!(plain.hash(), kernel(Source::Reduce, &[("STREAM", "bf16")]).hash());
    }

    #[test]
    fn every_source_ends_with_the_file_of_its_name() {
        for source in Source::ALL {
            let text = source.text();
            let last = text.rfind("#line 1 ").map(|at| &text[at..]).unwrap_or_default();
            assert!(last.starts_with(&format!("#line 1 \"{}.cu\"\n", source.name())));
            assert!(text.starts_with("#line 1 \"prelude.cu\"\n"));
            assert!(source.files().iter().all(|(_, text)| text.ends_with('\n')));
        }
    }
}
