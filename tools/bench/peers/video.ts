/** From a file to small RGB frames, one a second, beside decord, PyAV and FFmpeg's command; and the resize beside Pillow. */
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import type { Bench, Row } from './bench.ts';
import type { Contender } from './comparison.ts';
import { objects } from './process.ts';
import { median } from './statistics.ts';

const root = join(import.meta.dirname, '../../..');
const packages = (name: string) => pathToFileURL(join(root, 'packages', name, 'dist/index.js')).href;
/** Filmed by hand, 1080p. */
const source = join(root, 'fixtures/clips/phone_vfr_1080p_bt709.mp4');
const [seconds, fps, side] = [60, 30, 224];

/** What FFmpeg's encoders are told, beside our own H.264. */
const codecs: Readonly<Record<string, readonly string[]>> = {
  'H.264': ['-c:v', 'libx264', '-preset', 'medium'],
  HEVC: ['-c:v', 'libx265', '-preset', 'fast', '-x265-params', 'log-level=none'],
  VP9: ['-c:v', 'libvpx-vp9', '-b:v', '2M', '-deadline', 'realtime', '-cpu-used', '6', '-row-mt', '1'],
};

export const videoRows: Readonly<Record<'hd' | 'sd', Row>> = {
  hd: (bench) => videos(bench, 1080),
  sd: (bench) => videos(bench, 480),
};

async function* videos(bench: Bench, height: number): ReturnType<Row> {
  const ffmpeg = ffmpegOf(bench);
  using clips = bench.material('clips', 1e9, (folder) => {
    mkdirSync(folder);
    const first = join(folder, '1080-H.264.mp4');
    execFileSync(
      process.execPath,
      [
        join(import.meta.dirname, 'make-clip.ts'),
        packages('video'),
        source,
        first,
        String(seconds),
        String(fps),
      ],
      { stdio: 'inherit' },
    );
    for (const rows of [1080, 480]) {
      for (const [codec, options] of Object.entries(codecs)) {
        const path = join(folder, fileName(rows, codec));
        const scale = rows === 1080 ? [] : ['-vf', `scale=-2:${rows}`];
        if (path !== first)
          execFileSync(ffmpeg, ['-v', 'error', '-i', first, ...scale, ...options, '-an', path], {
            stdio: ['ignore', 'inherit', 'inherit'],
          });
      }
    }
  });
  if (clips === undefined) return;
  const threads = String(bench.choice.threads);
  for (const codec of Object.keys(codecs)) {
    const path = join(clips.path, fileName(height, codec));
    const title = `${height}p ${codec}, a minute at 1 fps`;
    const contender = (by: string, program: string, args: readonly string[]): Contender => ({
      by,
      run: async () => {
        const { cpuSeconds, peakBytes } = await bench.measured(program, args);
        return { cpu: cpuSeconds, command: cpuSeconds, peak: peakBytes / 1e6 };
      },
    });
    const python = bench.peers.python('decord', 'av', 'pillow', 'numpy');
    const script = join(import.meta.dirname, 'video_frames.py');
    const commandArgs = [
      '-v',
      'error',
      '-threads',
      threads,
      '-i',
      path,
      '-vf',
      `fps=1,scale=-2:${side}:flags=bicubic`,
    ];
    yield {
      lines: {
        cpu: {
          title: `${title}, processor seconds`,
          unit: 's',
          kind: 'cost',
          goal: { ratio: 0.6, to: 'decord' },
        },
        command: {
          title: `${title}, the same beside the command`,
          unit: 's',
          kind: 'cost',
          goal: { ratio: 0.55, to: 'ffmpeg' },
        },
        peak: { title: `${title}, peak of memory`, unit: 'MB', kind: 'cost', goal: { value: 250 } },
      },
      ours: contender('LLaMA-VID', process.execPath, [
        join(import.meta.dirname, 'read-clip.ts'),
        packages('video'),
        path,
        String(side),
      ]),
      peers: [
        contender('decord', python, [script, 'decord', path, String(side), threads]),
        contender('PyAV', python, [script, 'av', path, String(side), threads]),
        contender('ffmpeg', ffmpeg, [
          ...commandArgs,
          '-pix_fmt',
          'rgb24',
          '-f',
          'rawvideo',
          '-y',
          '/dev/null',
        ]),
      ],
    };
  }
}

function fileName(height: number, codec: string): string {
  return `${height}-${codec}.mp4`;
}

/** The program that `imageio-ffmpeg` carries. */
function ffmpegOf(bench: Bench): string {
  const python = bench.peers.python('imageio-ffmpeg');
  const ask = 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())';
  return execFileSync(python, ['-c', ask], { encoding: 'utf8' }).trim();
}

/** Pillow's bicubic filter, of which ours gives the same bytes. */
export const resize: Row = async function* (bench) {
  const runs = 30;
  const milliseconds = (stdout: string) => ({
    time: 1000 * median(objects<{ seconds: number }>(stdout).map(({ seconds: taken }) => taken)),
  });
  const python = bench.peers.python('pillow', 'numpy');
  yield {
    lines: { time: { title: `1080p to ${side} x ${side}`, unit: 'ms', kind: 'cost', goal: { value: 4 } } },
    ours: {
      by: 'LLaMA-VID',
      run: async () => milliseconds((await bench.ours({ kind: 'resize', runs })).stdout),
    },
    peers: [
      {
        by: 'Pillow',
        run: async () => {
          const script = join(import.meta.dirname, 'resize.py');
          return milliseconds((await bench.measured(python, [script, String(side), String(runs)])).stdout);
        },
      },
    ],
  };
};
