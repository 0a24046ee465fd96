import process from 'node:process';
import type { StoredVideo, VideoStore } from '@llamavid/pipeline';
import type { Command } from 'commander';
import { wrong } from './flags.js';

interface CacheFlags {
  store?: string;
  json?: boolean;
}

export function addCacheList(command: Command, end: (exitCode: number) => void): void {
  withStore(command).action(async (flags: CacheFlags) => {
    const { store, limitBytes } = await open(flags);
    const videos = await store.list();
    if (flags.json) {
      process.stdout.write(
        `${JSON.stringify({ store: store.folder, limitBytes: limitBytes ?? null, videos })}\n`,
      );
      return end(0);
    }
    for (const video of videos) process.stdout.write(`${line(video)}\n`);
    const total = videos.reduce((sum, { bytes }) => sum + bytes, 0);
    const { bytesText } = await import('@llamavid/pipeline');
    const limit = limitBytes === undefined ? '' : `, at most ${bytesText(limitBytes)}`;
    process.stdout.write(`${videos.length} videos, ${bytesText(total)}${limit}, in ${store.folder}\n`);
    end(0);
  });
}

export function addCacheRemove(command: Command, end: (exitCode: number) => void): void {
  withStore(
    command.argument('<key...>', 'what `llamavid cache ls` calls the videos, or how it begins'),
  ).action(async (keys: string[], flags: CacheFlags) => {
    const { store } = await open(flags);
    const all = await store.list();
    // All are looked for before the first one goes.
    const removed = keys.map((key) => find(all, key));
    for (const { key } of removed) await store.remove(key);
    end(report(removed, flags));
  });
}

export function addCachePrune(command: Command, end: (exitCode: number) => void): void {
  withStore(command)
    .option('--limit <size>', 'bytes to leave, such as 5GB; 0 removes all (default: the limit of the store)')
    .action(async (flags: CacheFlags & { limit?: string }) => {
      const { parseBytes } = await import('@llamavid/pipeline');
      const given = parseBytes('--limit', flags.limit);
      const { store, limitBytes } = await open(flags);
      const limit = given ?? limitBytes;
      if (limit === undefined) throw wrong('this store has no limit of its own', 'Give one with --limit.');
      end(report(await store.prune(limit), flags));
    });
}

function withStore(command: Command): Command {
  return command
    .option('--store <folder>', 'the store (default: where `ask` looks)')
    .option('--json', 'write one JSON object to stdout instead of text');
}

async function open({ store }: CacheFlags): Promise<{ store: VideoStore; limitBytes: number | undefined }> {
  const { defaultStore, VideoStore } = await import('@llamavid/pipeline');
  if (store !== undefined) return { store: await VideoStore.open(store), limitBytes: undefined };
  const setting = defaultStore();
  if (setting === undefined) throw wrong('LLAMAVID_STORE is `none`', 'Give a folder with --store.');
  return { store: await VideoStore.open(setting.folder), limitBytes: setting.limitBytes };
}

function find(videos: readonly StoredVideo[], key: string): StoredVideo {
  const found = videos.filter((video) => video.key.startsWith(key));
  const [video] = found;
  if (video !== undefined && found.length === 1) return video;
  throw wrong(
    `${key}: ${found.length === 0 ? 'no video of the store begins so' : `${found.length} videos begin so`}`,
    '`llamavid cache ls` lists what there is.',
  );
}

function report(removed: readonly StoredVideo[], flags: CacheFlags): number {
  if (flags.json) process.stdout.write(`${JSON.stringify({ removed })}\n`);
  else for (const video of removed) process.stdout.write(`removed ${line(video)}\n`);
  return 0;
}

function line({ key, source, frames, bytes, used, precision }: StoredVideo): string {
  const size = `${(bytes / 1e6).toFixed(1)} MB`.padStart(11);
  const state = frames === undefined ? 'not whole' : `${frames} frames`;
  const when = new Date(used).toISOString().slice(0, 16).replace('T', ' ');
  return `${key.slice(0, 12)} ${size}  ${when}  ${source ?? 'unreadable'} (${state}, ${precision ?? 'unknown'})`;
}
