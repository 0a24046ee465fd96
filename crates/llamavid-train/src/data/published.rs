//! The published lists by name: the stage that uses each, the folders it needs, and the folder structure of the
//! reference's README.

use std::path::{Path, PathBuf};

/// A stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Feature alignment.
    One,
    /// Instruction tuning.
    Two,
    /// Long video tuning.
    Three,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Three];

    /// From 1.
    pub fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// What the models are trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Pictures alone.
    Image,
    /// Pictures and short videos.
    ShortVideo,
    /// Videos of hours.
    LongVideo,
}

impl Setting {
    /// The setting as reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ShortVideo => "short video",
            Self::LongVideo => "long video",
        }
    }
}

/// A published list. Paths are relative to the folder that holds `data` and `model_zoo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedList {
    /// The file's name.
    pub name: &'static str,
    /// The folder it lies in.
    pub folder: &'static str,
    /// The stage that uses it.
    pub stage: Stage,
    /// What is trained with it.
    pub setting: Setting,
    /// The folder that its pictures' paths are relative to.
    pub images: Option<&'static str>,
    /// The folder that its videos' and features' paths are relative to.
    pub videos: Option<&'static str>,
    /// The folders that its records name files in.
    pub needs: &'static [&'static str],
    /// What it holds.
    pub about: &'static str,
}

const PRETRAIN: &str = "data/LLaMA-VID-Pretrain";
const FINETUNE: &str = "data/LLaMA-VID-Finetune";
const PRETRAIN_IMAGES: &str = "data/LLaMA-VID-Pretrain/images";
const PRETRAIN_VIDEOS: &str = "data/LLaMA-VID-Pretrain/videos";
const MIX_IMAGES: [&str; 5] = [
    "data/LLaMA-VID-Finetune/coco",
    "data/LLaMA-VID-Finetune/gqa",
    "data/LLaMA-VID-Finetune/ocr_vqa",
    "data/LLaMA-VID-Finetune/textvqa",
    "data/LLaMA-VID-Finetune/vg",
];
const MIX_AND_VIDEOS: [&str; 6] = [
    "data/LLaMA-VID-Finetune/activitynet",
    "data/LLaMA-VID-Finetune/coco",
    "data/LLaMA-VID-Finetune/gqa",
    "data/LLaMA-VID-Finetune/ocr_vqa",
    "data/LLaMA-VID-Finetune/textvqa",
    "data/LLaMA-VID-Finetune/vg",
];

/// The six published lists.
pub static PUBLISHED_LISTS: [PublishedList; 6] = [
    PublishedList {
        name: "blip_laion_cc_sbu_558k.json",
        folder: PRETRAIN,
        stage: Stage::One,
        setting: Setting::Image,
        images: Some(PRETRAIN_IMAGES),
        videos: None,
        needs: &[PRETRAIN_IMAGES],
        about: "558,000 pictures with captions",
    },
    PublishedList {
        name: "llava_558k_with_webvid.json",
        folder: PRETRAIN,
        stage: Stage::One,
        setting: Setting::ShortVideo,
        images: Some(PRETRAIN_IMAGES),
        videos: Some(PRETRAIN_VIDEOS),
        needs: &[PRETRAIN_IMAGES, PRETRAIN_VIDEOS],
        about: "558,000 pictures and 232,000 WebVid clips with captions",
    },
    PublishedList {
        name: "llava_v1_5_mix665k.json",
        folder: FINETUNE,
        stage: Stage::Two,
        setting: Setting::Image,
        images: Some(FINETUNE),
        videos: None,
        needs: &MIX_IMAGES,
        about: "665,000 instructions about pictures, and text alone",
    },
    PublishedList {
        name: "llava_v1_5_mix665k_with_video_chatgpt.json",
        folder: FINETUNE,
        stage: Stage::Two,
        setting: Setting::ShortVideo,
        images: Some(FINETUNE),
        videos: Some(FINETUNE),
        needs: &MIX_AND_VIDEOS,
        about: "the 665,000 instructions and Video-ChatGPT's about ActivityNet",
    },
    PublishedList {
        name: "llava_v1_5_mix665k_with_video_chatgpt_maxtime_5min.json",
        folder: FINETUNE,
        stage: Stage::Two,
        setting: Setting::ShortVideo,
        images: Some(FINETUNE),
        videos: Some(FINETUNE),
        needs: &MIX_AND_VIDEOS,
        about: "the same with videos of at most five minutes",
    },
    PublishedList {
        name: "long_videoqa.json",
        folder: FINETUNE,
        stage: Stage::Three,
        setting: Setting::LongVideo,
        images: Some(FINETUNE),
        videos: Some(FINETUNE),
        needs: &["data/LLaMA-VID-Finetune/movienet"],
        about: "questions about films, as features with subtitles",
    },
];

/// A list made from a published one by cutting long chats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitList {
    /// The file's name, in the folder of the list that it is made from.
    pub name: &'static str,
    /// The list that it is made from.
    pub from: &'static str,
    /// Most questions of a record.
    pub max_rounds: usize,
}

/// The lists that image models are trained with in stage 2; `split_chat` makes them.
pub static SPLIT_LISTS: [SplitList; 2] = [
    SplitList {
        name: "llava_v1_5_mix665k_maxround_6_total_921k.json",
        from: "llava_v1_5_mix665k.json",
        max_rounds: 6,
    },
    SplitList {
        name: "llava_v1_5_mix665k_maxround_12_total_714k.json",
        from: "llava_v1_5_mix665k.json",
        max_rounds: 12,
    },
];

/// Weights that training starts from, and the stages that read them.
pub static STARTING_WEIGHTS: [(&str, &[Stage]); 5] = [
    ("model_zoo/LLM/vicuna/7B-V1.5", &[Stage::One, Stage::Two]),
    ("model_zoo/LLM/vicuna/13B-V1.5", &[Stage::One, Stage::Two]),
    ("model_zoo/LAVIS/eva_vit_g.pth", &[Stage::One, Stage::Two, Stage::Three]),
    ("model_zoo/LAVIS/instruct_blip_vicuna7b_trimmed.pth", &[Stage::One]),
    ("model_zoo/LAVIS/instruct_blip_vicuna13b_trimmed.pth", &[Stage::One]),
];

impl PublishedList {
    /// The list of that file name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        PUBLISHED_LISTS.iter().find(|list| list.name == name)
    }

    /// The list's path under the folder that holds `data`.
    pub fn path(&self) -> PathBuf {
        Path::new(self.folder).join(self.name)
    }
}

/// Something of the published structure that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The path that was looked for.
    pub path: PathBuf,
    /// Whether a folder is missing, or a file.
    pub folder: bool,
    /// The stages that need it, rising.
    pub stages: Vec<Stage>,
    /// The published lists that need it; empty for weights.
    pub lists: Vec<&'static str>,
}

/// What is missing under `root`, the folder that holds `data` and `model_zoo`: lists, the folders they name files in, and
/// starting weights. An empty folder is as good as none.
pub fn missing(root: &Path) -> Vec<Missing> {
    let mut missing: Vec<Missing> = Vec::new();
    let mut need = |path: PathBuf, folder: bool, stages: &[Stage], list: Option<&'static str>| {
        let path = root.join(path);
        let there = if folder { holds_something(&path) } else { path.is_file() };
        if there {
            return;
        }
        let at = match missing.iter().position(|known| known.path == path) {
            Some(at) => at,
            None => {
                missing.push(Missing { path, folder, stages: Vec::new(), lists: Vec::new() });
                missing.len() - 1
            }
        };
        if let Some(entry) = missing.get_mut(at) {
            entry.stages.extend_from_slice(stages);
            entry.stages.sort_unstable();
            entry.stages.dedup();
            entry.lists.extend(list);
        }
    };
    for list in &PUBLISHED_LISTS {
        need(list.path(), false, &[list.stage], Some(list.name));
        for folder in list.needs {
            need(PathBuf::from(folder), true, &[list.stage], Some(list.name));
        }
    }
    for (path, stages) in STARTING_WEIGHTS {
        let folder = !path.ends_with(".pth");
        need(PathBuf::from(path), folder, stages, None);
    }
    missing
}

fn holds_something(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}
