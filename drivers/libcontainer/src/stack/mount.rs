//! Image files mounted by a loop device, read-only.
//!
//! The device is set up and bound in one step, and goes by itself with the last mount
//! (autoclear): nothing has to be remembered to free it, and nothing is left when a mount
//! namespace ends, whoever was killed.

#![expect(unsafe_code, reason = "the ioctls of loop devices")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use nix::mount::MsFlags;
use thiserror::Error;

use super::{
    Image, Stack,
    image::{self, Filesystem, ImageError},
};

const LOOP_CTL_GET_FREE: u32 = 0x4C82;
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often somebody else may take the free device between our two calls: a storm of drivers
/// that start together, and udev, which opens each device that it hears of.
const TRIES: u32 = 256;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(get_free, LOOP_CTL_GET_FREE);
nix::ioctl_write_ptr_bad!(configure, LOOP_CONFIGURE, LoopConfig);

/// A stack could not be mounted.
#[derive(Debug, Error)]
pub enum MountError {
    #[error("failed to open the stack image `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}` is no stack image", .path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error(
        "failed to get a loop device: is the module `loop` loaded, and /dev/loop-control there?"
    )]
    NoLoop(#[source] io::Error),
    #[error("failed to open {device}")]
    Device { device: String, source: io::Error },
    #[error("every loop device was taken by somebody else {TRIES} times over")]
    Busy,
    #[error("failed to attach `{}` to {device}", .path.display())]
    Configure {
        path: PathBuf,
        device: String,
        source: io::Error,
    },
    #[error("failed to make the mount point `{}`", .path.display())]
    Point { path: PathBuf, source: io::Error },
    #[error(
        "failed to mount `{}`: is the file system {} in the kernel, or its module loaded?",
        .path.display(),
        .kind.name()
    )]
    Mount {
        path: PathBuf,
        kind: Filesystem,
        source: io::Error,
    },
    #[error("the stack's directory `{}` is no directory", .path.display())]
    NotDirectory { path: PathBuf },
}

/// The directory with a stack's root file system: an image is mounted at `at`, a directory is
/// itself.
///
/// The mount goes with the caller's mount namespace, or by `umount`, and its loop device with it.
pub fn mount(stack: &Stack, at: &Path) -> Result<PathBuf, MountError> {
    let path = match &stack.image {
        Image::Directory(path) if path.is_dir() => return Ok(path.clone()),
        Image::Directory(path) => return Err(MountError::NotDirectory { path: path.clone() }),
        Image::File { path, .. } => path,
    };
    let file = File::open(path).map_err(|source| MountError::Open {
        path: path.clone(),
        source,
    })?;
    // As it is now: it may have been cut short since it was found.
    let kind = image::probe(&file).map_err(|source| MountError::Image {
        path: path.clone(),
        source,
    })?;
    fs::create_dir_all(at).map_err(|source| MountError::Point {
        path: at.to_owned(),
        source,
    })?;
    let device = attach(&file, path)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let options = match kind {
        // The journal of an image that was not unmounted cleanly could not be replayed here.
        Filesystem::Ext4 => Some("noload"),
        Filesystem::Squashfs => None,
    };
    let mounted = nix::mount::mount(
        Some(device.name.as_str()),
        at,
        Some(kind.name()),
        flags,
        options,
    );
    mounted.map_err(|error| MountError::Mount {
        path: path.clone(),
        kind,
        source: error.into(),
    })?;
    Ok(at.to_owned())
}

/// A loop device with a file. Closed, it is free again unless it is mounted.
struct Device {
    name: String,
    _opened: File,
}

fn attach(file: &File, path: &Path) -> Result<Device, MountError> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control");
    let control = control.map_err(MountError::NoLoop)?;
    let config = configuration(file.as_raw_fd(), path);
    for _ in 0..TRIES {
        // SAFETY: the request takes no argument, the descriptor is open.
        let number = unsafe { get_free(control.as_raw_fd()) };
        let number = number.map_err(|error| MountError::NoLoop(error.into()))?;
        let name = format!("/dev/loop{number}");
        let opened = File::open(&name).map_err(|source| MountError::Device {
            device: name.clone(),
            source,
        })?;
        // SAFETY: the request reads a `loop_config`, which `config` is, and both descriptors
        // are open.
        match unsafe { configure(opened.as_raw_fd(), &raw const config) } {
            Ok(_) => {
                return Ok(Device {
                    name,
                    _opened: opened,
                });
            }
            // Taken since we asked. The kernel then has another one for the next who asks.
            Err(nix::errno::Errno::EBUSY) => std::thread::yield_now(),
            Err(error) => {
                return Err(MountError::Configure {
                    path: path.to_owned(),
                    device: name,
                    source: error.into(),
                });
            }
        }
    }
    Err(MountError::Busy)
}

fn configuration(file: RawFd, path: &Path) -> LoopConfig {
    // What `losetup` shows: as much of the path as there is room for, and a nul.
    let mut file_name = [0; 64];
    let shown = path.as_os_str().as_bytes();
    let length = shown.len().min(63);
    file_name[..length].copy_from_slice(&shown[..length]);
    LoopConfig {
        fd: file.cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    }
}

#[cfg(test)]
#[path = "mount_tests.rs"]
mod tests;
