/** The peers, in a folder of their own that may be deleted at any time. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

/** Pinned: another version is another peer. */
export const versions = {
  av: '18.1.0',
  cmake: '4.4.5',
  decord: '0.6.0',
  'imageio-ffmpeg': '0.8.1',
  'llama-cpp-python': '0.3.36',
  ninja: '1.13.2',
  'node-llama-cpp': '3.22.1',
  numpy: '2.4.6',
  onnx: '1.23.2',
  onnxruntime: '1.32.0',
  pillow: '13.0.0',
  torch: '2.15.0',
} as const;

type PythonPackage = Exclude<keyof typeof versions, 'node-llama-cpp'>;

/** `LLAMAVID_PEERS`, or a folder of the user's cache. */
function peerFolder(): string {
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  return process.env['LLAMAVID_PEERS'] || join(cache, 'llamavid-peers');
}

/** Installs peers when they are first asked for. */
export class PeerFolder {
  readonly path = peerFolder();

  constructor() {
    mkdirSync(this.path, { recursive: true });
  }

  /** A Python that has these packages. */
  python(...packages: readonly PythonPackage[]): string {
    const folder = join(this.path, 'python');
    const python = join(folder, 'bin/python');
    if (!existsSync(python)) execute('python3', ['-m', 'venv', folder]);
    const missing = packages.filter((name) => !existsSync(this.#mark(name)));
    if (missing.length > 0) {
      console.error(`installing ${missing.join(', ')} into ${this.path}`);
      const wanted = missing.map((name) => `${name}==${versions[name]}`);
      execute(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', ...wanted]);
      for (const name of missing) writeFileSync(this.#mark(name), '');
    }
    return python;
  }

  /** llama.cpp's `llama-batched-bench`, built for this machine from the source that `llama-cpp-python` carries. */
  llamaBench(): string {
    const version = versions['llama-cpp-python'];
    const built = join(this.path, `llama.cpp-${version}`);
    const program = join(built, 'bin/llama-batched-bench');
    if (existsSync(program)) return program;
    const python = this.python('cmake', 'ninja');
    const work = join(this.path, 'building');
    rmSync(work, { recursive: true, force: true });
    mkdirSync(work);
    console.error(`building llama.cpp in ${this.path}; this takes some ten minutes on two cores`);
    const source = ['--no-deps', '--no-binary', 'llama-cpp-python', `llama-cpp-python==${version}`];
    execute(python, ['-m', 'pip', 'download', '--quiet', '--dest', work, ...source]);
    const [archive] = readdirSync(work);
    if (archive === undefined) throw new Error('pip downloaded nothing');
    execute(python, ['-m', 'tarfile', '-e', join(work, archive), work]);
    const unpacked = join(work, archive.replace(/\.tar\.gz$/, ''), 'vendor/llama.cpp');
    const [cmake, build] = [join(python, '../cmake'), join(work, 'build')];
    const ninja = join(python, '../ninja');
    const off = ['TESTS', 'EXAMPLES', 'SERVER', 'UI', 'APP'].map((part) => `-DLLAMA_BUILD_${part}=OFF`);
    // GCC 12 leaves out the writes of what its AMX code loads as the configuration of tiles, and the program ends with a fault.
    const flags = hasTiles()
      ? ['-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse -fno-lifetime-dse -fno-strict-aliasing']
      : [];
    const kind = ['-DCMAKE_BUILD_TYPE=Release', '-DGGML_NATIVE=ON', '-DBUILD_SHARED_LIBS=OFF'];
    const options = [...kind, ...flags, ...off];
    const tools = ['-G', 'Ninja', `-DCMAKE_MAKE_PROGRAM=${ninja}`, '-DLLAMA_OPENSSL=OFF'];
    execute(cmake, ['-S', unpacked, '-B', build, ...tools, ...options]);
    execute(cmake, ['--build', build, '--target', 'llama-batched-bench']);
    // Its name is its proof that it is whole.
    rmSync(built, { recursive: true, force: true });
    renameSync(build, built);
    rmSync(work, { recursive: true, force: true });
    return program;
  }

  /** The entry of npm's `node-llama-cpp`, with the program that it brings for this platform. */
  nodeLlama(): string {
    const folder = join(this.path, `node-llama-cpp-${versions['node-llama-cpp']}`);
    const entry = join(folder, 'node_modules/node-llama-cpp/dist/index.js');
    if (!existsSync(entry)) {
      console.error(`installing node-llama-cpp into ${this.path}`);
      mkdirSync(folder, { recursive: true });
      // Its script only looks whether a program of another kind has to be built.
      const options = ['--prefix', folder, '--ignore-scripts', '--no-audit', '--no-fund'];
      execute('npm', ['install', ...options, `node-llama-cpp@${versions['node-llama-cpp']}`]);
    }
    return entry;
  }

  #mark(name: PythonPackage): string {
    return join(this.path, 'python', `${name}-${versions[name]}.installed`);
  }
}

/** Whether this processor has AMX. */
function hasTiles(): boolean {
  return existsSync('/proc/cpuinfo') && readFileSync('/proc/cpuinfo', 'utf8').includes('amx_tile');
}

/** Runs a program whose output matters only when it fails. */
function execute(program: string, args: readonly string[]): void {
  execFileSync(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}
