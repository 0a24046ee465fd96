import { randomUUID } from 'node:crypto';
import { accessSync, constants, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { wrong } from './flags.js';

/** Runs a command and, where a path is given, writes there where its time went. The file appears when the command has ended, and is whole. */
export async function profiled(path: string | undefined, command: () => Promise<number>): Promise<number> {
  if (path === undefined) return await command();
  checkWritable(path);
  const { Profile } = await import('@llamavid/pipeline');
  using profile = Profile.start();
  const exitCode = await command();
  const unfinished = `${path}.${randomUUID()}.part`;
  try {
    writeFileSync(unfinished, JSON.stringify(profile.finish()));
    renameSync(unfinished, path);
  } catch (error) {
    rmSync(unfinished, { force: true });
    throw unwritable(path, error);
  }
  return exitCode;
}

/** Before any work. */
function checkWritable(path: string): void {
  if (path === '') throw wrong('--profile names no file');
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    throw wrong(`--profile ${path} is a folder`, 'Give the name of a file, trace.json for instance.');
  }
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch (error) {
    throw unwritable(path, error);
  }
}

function unwritable(path: string, error: unknown): Error {
  return wrong(
    `--profile ${path} cannot be written: ${error instanceof Error ? error.message : String(error)}`,
  );
}
