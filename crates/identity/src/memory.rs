//! Memory in large pages.
//!
//! What is looked up lies anywhere in hundreds of megabytes. In pages of 4 KiB, finding out where a
//! page is takes the processor about as long as reading what is in it.

use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapOptions};

use crate::arena::Full;

/// Zeroed bytes, which take room page by page, as they are written to.
#[derive(Debug)]
pub(crate) struct Memory(MmapMut);

/// Which pages to ask the operating system for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Whatever little is written takes little.
    Small,
    /// 2 MiB or so, where there are such.
    Large,
}

impl Memory {
    /// So many bytes, at least one.
    pub(crate) fn zeroed(bytes: usize, pages: Pages) -> Result<Self, Full> {
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon();
        let map = map.map_err(|_| Full)?;
        #[cfg(target_os = "linux")]
        if pages == Pages::Large {
            // A system without them does with small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = pages;
        Ok(Self(map))
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
