// Addons with CUDA and without it on machines with and without a graphics processor, which a driver made here plays.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { afterAll, describe, expect, it, vi } from 'vitest';

// Compilers and processes are started, which takes as long as the machine likes.
vi.setConfig({ testTimeout: 300_000 });

const root = join(import.meta.dirname, '../../..');
const platform = 'linux-x64-gnu';
const packages = join(import.meta.dirname, '../npm');
const cpu = join(packages, platform, `llamavid.${platform}.node`);
const cuda = join(packages, `${platform}-cuda`, `llamavid.${platform}-cuda.node`);
const package_ = `@llamavid/native-${platform}-cuda`;
const onLinux = process.platform === 'linux' && process.arch === 'x64';

const work = mkdtempSync(join(tmpdir(), 'llamavid-cuda-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

/** An environment whose Python has no packages, so that none of this machine's are found. */
const silentPython = join(work, 'python');
mkdirSync(join(silentPython, 'bin'), { recursive: true });
writeFileSync(join(silentPython, 'bin/python3'), '#!/bin/sh\n', { mode: 0o755 });

/** Then nothing can be missing. */
const libraries = onLinux ? (spawnSync('ldconfig', ['-p']).stdout?.toString() ?? '') : '';
const hasCuda = libraries.includes('libcublasLt.so.13');
const hasNccl = libraries.includes('libnccl.so.2');

interface Driver {
  start?: number;
  /** Devices. */
  count?: number;
  version?: number;
  capability?: [number, number];
  /** More functions, in C. */
  functions?: string;
  /** Whether what CUDA needs beside the driver is there. */
  libraries?: boolean;
  /** NCCL's library, in C. */
  nccl?: string;
}

let drivers = 0;

/** A toolkit's folder with a driver of its own, for `CUDA_HOME`. */
function driver({
  start = 0,
  count = 1,
  version = 13_000,
  capability = [9, 0],
  functions,
  libraries = true,
  nccl,
}: Driver) {
  drivers += 1;
  const home = join(work, `driver${drivers}`);
  const folder = join(home, 'lib64');
  mkdirSync(folder, { recursive: true });
  const [major, minor] = capability;
  const values = { START: start, COUNT: count, VERSION: version, MAJOR: major, MINOR: minor };
  const definitions = Object.entries(values).map(([name, value]) => `-D${name}=${value}`);
  const more = join(home, 'more.c');
  writeFileSync(more, functions ?? '');
  const sources = [join(import.meta.dirname, 'driver.c'), more];
  execFileSync('cc', ['-shared', '-fPIC', ...definitions, ...sources, '-o', join(folder, 'libcuda.so.1')]);
  for (const name of libraries ? ['libcublasLt.so.13', 'libcublas.so.13', 'libcurand.so.10'] : []) {
    execFileSync('cc', ['-shared', '-o', join(folder, name), '-x', 'c', '/dev/null']);
  }
  if (nccl !== undefined) {
    const source = join(home, 'nccl.c');
    writeFileSync(source, nccl);
    execFileSync('cc', ['-shared', '-fPIC', source, '-o', join(folder, 'libnccl.so.2')]);
  }
  return home;
}

/** Runs a script that has the package as `native`; gives the JSON that it writes. */
function run(
  script: string,
  environment: Record<string, string>,
  entry = join(import.meta.dirname, '../dist/index.js'),
) {
  const whole = `import(${JSON.stringify(entry)}).then(async (native) => {
    const tried = (name) => {
      try { return native.callNative(() => native.Device.open(name)).name; }
      catch ({ code, message, hint }) { return { code, message, hint }; }
    };
    ${script}
  })`;
  const { PATH = '' } = process.env;
  const env = { PATH, CUDA_HOME: '', CUDA_PATH: '', VIRTUAL_ENV: silentPython, ...environment };
  const done = spawnSync(process.execPath, ['-e', whole], { env, encoding: 'utf8' });
  expect([done.status, done.signal, done.stderr]).toEqual([0, null, '']);
  return JSON.parse(done.stdout);
}

const opened = 'console.log(JSON.stringify({ cuda: tried("cuda"), auto: tried("auto") }))';

describe.runIf(onLinux)('an addon without CUDA', () => {
  it('names the package that has it', () => {
    const { cuda, auto } = run(opened, { LLAMAVID_NATIVE_PATH: cpu, CUDA_HOME: driver({}) });
    expect(cuda).toMatchObject({ code: 'DEVICE_UNAVAILABLE', message: expect.stringMatching(/no CUDA/) });
    expect(cuda.hint).toContain(`Install ${package_},`);
    expect(auto).toBe('cpu');
  });

  const missing: [string, Driver, RegExp][] = [
    ['no device', { start: 100 }, /cuInit gives 100, CUDA_ERROR_NO_DEVICE/],
    ['an old driver', { version: 12_040 }, /for CUDA 12\.4, and 13\.0 is needed/],
    ['no cuBLAS', { libraries: false }, /libcublasLt\.so\.13 was not found/],
    [
      'an old device',
      { capability: [7, 5] },
      /no build for a device of the test \(compute capability 7\.5\)/,
    ],
  ];
  it.each(missing.filter(([, { libraries }]) => libraries !== false || !hasCuda))(
    'says what else is missing: %s',
    (_, options, reason) => {
      const { cuda, auto } = run(opened, { LLAMAVID_NATIVE_PATH: cpu, CUDA_HOME: driver(options) });
      expect(cuda.code).toBe('DEVICE_UNAVAILABLE');
      expect(cuda.hint).toMatch(reason);
      expect(auto).toBe('cpu');
    },
  );
});

describe.runIf(onLinux)('the choice of an addon', () => {
  const place = join(work, 'installed');
  const scope = join(place, 'node_modules/@llamavid');
  const entry = join(scope, 'native/dist/index.js');
  const choice = 'console.log(JSON.stringify(native.loadedAddon))';

  /** Installs the package, with the CPU's addon in the place of one with CUDA, which this test wants to be there in any case. */
  function install(version: string) {
    for (const name of ['errors', 'native']) {
      for (const part of ['package.json', 'dist']) {
        cpSync(join(root, 'packages', name, part), join(scope, name, part), { recursive: true });
      }
    }
    cpSync(join(packages, platform), join(scope, `native-${platform}`), { recursive: true });
    const manifest = { name: package_, version, main: 'addon.node' };
    mkdirSync(join(scope, `native-${platform}-cuda`), { recursive: true });
    writeFileSync(join(scope, `native-${platform}-cuda/package.json`), JSON.stringify(manifest));
    cpSync(cpu, join(scope, `native-${platform}-cuda/addon.node`));
  }

  const { version } = JSON.parse(readFileSync(join(root, 'packages/native/package.json'), 'utf8'));

  it('is the one with CUDA where all that it needs is there', () => {
    install(version);
    const home = driver({});
    expect(run(choice, { CUDA_HOME: home }, entry)).toEqual({
      source: package_,
      reason: 'it runs on a device of the test (compute capability 9.0)',
    });
    const support = run('console.log(JSON.stringify(native.cudaSupport()))', { CUDA_HOME: home }, entry);
    expect(support.libraries).toContain(join(home, 'lib64/libcublas.so.13'));
    expect(support.packages).toEqual([package_]);
  });

  it('is the one of the CPU where something is missing, and says what', () => {
    install(version);
    const reasonWith = (options: Driver) => {
      const { source, reason } = run(choice, { CUDA_HOME: driver(options) }, entry);
      expect(source).toBe(`@llamavid/native-${platform}`);
      return reason;
    };
    expect(reasonWith({ start: 100 })).toMatch(/is installed, but NVIDIA's driver .* CUDA_ERROR_NO_DEVICE/);
    if (!hasCuda) expect(reasonWith({ libraries: false })).toMatch(/is installed, but libcublasLt/);
    expect(reasonWith({ capability: [8, 6] })).toMatch(/does not run on a device of the test .*8\.6/);
    install('0.0.1');
    expect(reasonWith({})).toMatch(/has the version 0\.0\.1/);
    rmSync(join(scope, `native-${platform}-cuda`), { recursive: true });
    expect(reasonWith({})).toBe('no package with CUDA is installed');
  });
});

describe.runIf(onLinux)('the addon with CUDA', () => {
  const missing = (addon: string) => (existsSync(addon) ? '' : 'it was not built: pnpm build:cuda');
  const notBuilt = missing(cuda);
  // Of each architecture that there are builds for.
  const all = ['cuda', 'cuda-sm89', 'cuda-sm80'].map((suffix) => {
    const name = `${platform}-${suffix}`;
    return { name, addon: join(packages, name, `llamavid.${name}.node`) };
  });

  it.for(all)('asks the system for nothing of CUDA: $name', ({ addon }, { skip }) => {
    skip(!existsSync(addon), missing(addon));
    const { needed } = linkage(addon);
    expect(needed).toContain('libc.so.6');
    expect(needed.filter((name) => /cu(da|blas|rand|dnn)|nv/.test(name))).toEqual([]);
  });

  it.for(all)('answers on a machine without a driver as the CPU’s does: $name', ({ addon }, { skip }) => {
    skip(!existsSync(addon), missing(addon));
    const script = `
      const folder = ${JSON.stringify(join(root, 'fixtures/random-model'))};
      const device = native.Device.open('auto');
      const [encoder, generator, model] = await Promise.all(
        [native.VisualEncoder, native.TokenGenerator, native.LanguageModel].map((part) => part.load(folder, { device })));
      const data = new Uint8Array(100 * 90 * 3).map((_, index) => (index * 7) % 256);
      const pixels = native.Pixels.fromRgb([{ data, width: 100, height: 90 }], encoder.preprocessing);
      const [tokens] = await generator.generate(await encoder.encode(pixels), ['What is it?']);
      const session = model.createSession();
      const prompt = 'USER: <image>\\nWhat is it? ASSISTANT:';
      await session.start({ prompt, visualTokens: [tokens], maxNewTokens: 24, temperature: 0, stop: [] });
      const ids = [];
      for (let ended = false; !ended; ) {
        const [piece] = await Promise.all(native.Session.nextOfEach([{ session, cancellation: new native.Cancellation() }]));
        ids.push(...piece.tokenIds);
        ended = piece.finishReason !== undefined;
      }
      console.log(JSON.stringify({ device: device.name, ids, cuda: tried('cuda') }));`;
    const expected = run(script, { LLAMAVID_NATIVE_PATH: cpu });
    const actual = run(script, { LLAMAVID_NATIVE_PATH: addon });
    expect(actual.ids).toEqual(expected.ids);
    expect(actual.ids.length).toBeGreaterThan(3);
    expect(actual.device).toBe('cpu');
    expect(actual.cuda).toMatchObject({
      code: 'DEVICE_UNAVAILABLE',
      message: expect.stringContaining("NVIDIA's driver was not found: libcuda.so.1: cannot open"),
    });
  });

  it('tells when a device has no memory left, and goes on', ({ skip }) => {
    skip(notBuilt !== '', notBuilt);
    const folder = JSON.stringify(join(root, 'fixtures/random-model'));
    const script = `
      const load = async (name) => {
        const device = native.callNative(() => native.Device.open(name));
        try {
          const encoder = await native.callNativeAsync(native.VisualEncoder.load(${folder}, { device }));
          return encoder.width;
        } catch ({ code, hint }) { return { code, hint }; }
      };
      const loaded = [];
      for (const name of ['cuda', 'cpu', 'cuda:0']) loaded.push(await load(name));
      console.log(JSON.stringify(loaded));`;
    const home = driver({ functions: allCalls(/^cuMemAlloc/) });
    const full = { code: 'OUT_OF_MEMORY', hint: expect.stringContaining('smaller dtype') };
    expect(run(script, { LLAMAVID_NATIVE_PATH: cuda, CUDA_HOME: home })).toEqual([full, 32, full]);
  });

  it('shares layers among devices by NCCL, and ends them all when one fails', ({ skip }) => {
    skip(notBuilt !== '', notBuilt);
    const log = join(work, 'nccl.log');
    const folder = JSON.stringify(join(root, 'packages/tiny/model'));
    const script = `
      const device = native.callNative(() => native.Device.open('cuda:0,cuda:1'));
      const told = [];
      const tell = async (work) => {
        try { told.push((await native.callNativeAsync(work)) ?? null); }
        catch ({ code, message, hint }) { told.push({ code, message, hint }); }
      };
      let model;
      await tell(async () => {
        model = await native.LanguageModel.load(${folder}, { device, split: 'tensor' });
        return 'loaded';
      });
      for (let time = 0; model !== undefined && time < 2; time += 1) {
        const session = model.createSession();
        await tell(() => session.start({ prompt: 'what is there?', visualTokens: [], maxNewTokens: 2, temperature: 0, stop: [] }));
        session.close();
      }
      console.log(JSON.stringify(told));`;
    const shared = (nccl?: string) => {
      rmSync(log, { force: true });
      const options = { count: 2, functions: allCalls(), ...(nccl !== undefined && { nccl }) };
      return run(script, { LLAMAVID_NATIVE_PATH: cuda, CUDA_HOME: driver(options) });
    };
    const calls = () => readFileSync(log, 'utf8').trim().split('\n');
    /** A library that writes its calls down; `sum` is what each rank's part of a sum gives. */
    const library = (connect: number, sum: string) => `
      #include <stdio.h>
      static void told(const char *call) {
        FILE *file = fopen(${JSON.stringify(log)}, "a");
        fprintf(file, "%s\\n", call);
        fclose(file);
      }
      static int sums;
      int ncclCommInitAll(void **all, int count, const int *devices) {
        for (int rank = 0; rank < count; rank++) all[rank] = (char *)0 + 16 * (rank + 1);
        told(count == 2 && devices[0] == 0 && devices[1] == 1 ? "connect" : "others");
        return ${connect};
      }
      int ncclGroupStart(void) { return 0; }
      int ncclGroupEnd(void) { told("sum"); return 0; }
      int ncclAllReduce(void) { sums++; return ${sum}; }
      int ncclCommGetAsyncError(void *one, int *error) { *error = 0; return 0; }
      int ncclCommAbort(void *one) { told("abort"); return 0; }
      const char *ncclGetErrorString(int error) { return "a failure of the test"; }`;

    if (!hasNccl) {
      const [missing] = shared();
      expect(missing).toMatchObject({
        code: 'DEVICE_UNAVAILABLE',
        message: expect.stringContaining('libnccl.so.2'),
        hint: expect.stringContaining('nvidia-nccl-cu13'),
      });
    }

    const [unconnected] = shared(library(2, '0'));
    expect(unconnected).toMatchObject({
      code: 'DEVICE_UNAVAILABLE',
      message: expect.stringContaining('a failure of the test'),
    });

    const [loaded, first, second] = shared(library(0, 'sums > 6 ? 2 : 0'));
    expect(loaded).toBe('loaded');
    for (const failed of [first, second]) {
      expect(failed.message).toContain('no longer compute together, load the model again');
      expect(failed.message).toContain('a failure of the test');
    }
    // Three sums of two ranks, and one whose first part fails: every one is ended, and none begun behind the end.
    expect(calls()).toEqual(['connect', 'sum', 'sum', 'sum', 'sum', 'abort', 'abort']);

    const [, started] = shared(library(0, '0'));
    expect(started).toEqual({ promptTokens: expect.any(Number), visualTokens: 0, keptTokens: 0 });
    // Embeddings, two sums for each of five layers, hidden states for the output, and its logits.
    expect(calls().filter((call) => call === 'sum')).toHaveLength(2 * (1 + 5 * 2 + 2));
  });

  it('says why it cannot be loaded when all functions are to be bound at once', ({ skip }) => {
    skip(notBuilt !== '', notBuilt);
    const entry = JSON.stringify(join(import.meta.dirname, '../dist/index.js'));
    const script = `import(${entry}).catch(({ code, hint }) => console.log(JSON.stringify({ code, hint })))`;
    const env = { ...process.env, LD_BIND_NOW: '1', LLAMAVID_NATIVE_PATH: cuda };
    const { stdout } = spawnSync(process.execPath, ['-e', script], { env, encoding: 'utf8' });
    expect(JSON.parse(stdout)).toEqual({
      code: 'DEVICE_UNAVAILABLE',
      hint: expect.stringContaining('unset LD_BIND_NOW'),
    });
  });

  it('says which driver does not serve it', ({ skip }) => {
    skip(notBuilt !== '', notBuilt);
    const none = run(opened, { LLAMAVID_NATIVE_PATH: cuda, CUDA_HOME: driver({ start: 100 }) });
    expect(none.cuda.code).toBe('DEVICE_UNAVAILABLE');
    expect(none.cuda.message).toContain('CUDA_ERROR_NO_DEVICE');
    expect(none.auto).toBe('cpu');
    const other = run(opened, { LLAMAVID_NATIVE_PATH: cuda, CUDA_HOME: driver({ capability: [8, 0] }) });
    expect(other.cuda.message).toMatch(/8\.0\) does not run a build for sm_90a/);
    expect(other.cuda.hint).toContain(`${package_}-sm80`);
    expect(other.auto).toBe('cpu');
  });
});

/** All calls of CUDA that the addon makes and the driver does not answer, in C: they succeed and do nothing, or have no memory. */
function allCalls(full = /^$/): string {
  const source = readFileSync(join(import.meta.dirname, 'driver.c'), 'utf8');
  const calls = linkage(cuda).open.filter((name) => /^cu/.test(name) && !source.includes(`${name}(`));
  return calls.map((name) => `int ${name}(void) { return ${full.test(name) ? 2 : 0}; }`).join('\n');
}

/** What a 64-bit little-endian ELF file asks for. Source: "Tool Interface Standard, Executable and Linking Format". */
function linkage(path: string): { needed: string[]; open: string[] } {
  const file = readFileSync(path);
  const number = (at: number) => Number(file.readBigUInt64LE(at));
  const sections = Array.from({ length: file.readUInt16LE(0x3c) }, (_, index) => {
    const at = number(0x28) + index * file.readUInt16LE(0x3a);
    const [type, link] = [file.readUInt32LE(at + 4), file.readUInt32LE(at + 40)];
    return { type, link, offset: number(at + 24), size: number(at + 32) };
  });
  /** Texts that the entries of the first section of a kind point to, for those that `wanted` gives a place of. */
  const texts = (kind: number, entry: number, wanted: (at: number) => number | undefined) => {
    const section = sections.find(({ type }) => type === kind);
    const strings = sections[section?.link ?? 0];
    if (section === undefined || strings === undefined) throw new Error(`${path} has no section ${kind}`);
    const found: string[] = [];
    for (let at = section.offset; at < section.offset + section.size; at += entry) {
      const place = wanted(at);
      if (place === undefined) continue;
      const start = strings.offset + place;
      found.push(file.toString('latin1', start, file.indexOf(0, start)));
    }
    return found;
  };
  return {
    needed: texts(6, 16, (at) => (number(at) === 1 ? number(at + 8) : undefined)),
    open: texts(11, 24, (at) => (file.readUInt16LE(at + 6) === 0 ? file.readUInt32LE(at) : undefined)),
  };
}
