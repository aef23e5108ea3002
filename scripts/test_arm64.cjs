// Cross-compiles the native test programs of the ops for 64-bit Arm Linux and runs each under qemu's user emulation.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const build = path.join(root, 'build', 'arm64');
const emulator = 'qemu-aarch64';
// Where Debian's cross-compiler keeps the Arm loader and C++ library.
const libraries = '/usr/aarch64-linux-gnu';
const debianPackages = { cmake: 'cmake', 'aarch64-linux-gnu-g++': 'g++-aarch64-linux-gnu', [emulator]: 'qemu-user' };

function fail(message) {
  console.error(`lowrank: ${message}`);
  process.exit(1);
}

function requireTools() {
  const missing = Object.keys(debianPackages).filter((tool) => spawnSync(tool, ['--version'], { stdio: 'ignore' }).error);
  if (missing.length > 0) {
    const packages = missing.map((tool) => debianPackages[tool]).join(' ');
    fail(`the arm64 tests need ${missing.join(', ')}, not found here. Install with: apt install ${packages} (Debian, Ubuntu).`);
  }
}

function cmake(args) {
  const result = spawnSync('cmake', args, { cwd: root, stdio: 'inherit' });
  if (result.status !== 0) fail(`cmake ${args.join(' ')} ended with ${result.error?.message ?? result.status ?? result.signal}`);
}

function buildPrograms() {
  const toolchain = path.join(__dirname, 'arm64.toolchain.cmake');
  const options = ['-DCMAKE_BUILD_TYPE=Release', '-DLOWRANK_NATIVE_TESTS=ON', `-DCMAKE_TOOLCHAIN_FILE=${toolchain}`];
  cmake(['-S', root, '-B', build, ...options]);
  cmake(['--build', build, '--target', 'native_tests', '--parallel', String(os.availableParallelism())]);
}

/** Runs one program; true where it ended with 0 and said ok. */
function passes(program) {
  const started = Date.now();
  // In the root, where the programs look for their fixtures.
  const options = { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 };
  const result = spawnSync(emulator, ['-L', libraries, path.join(build, program)], options);
  const passed = result.status === 0 && /^ok$/m.test(result.stdout);
  console.log(`${program}: ${passed ? 'passed' : 'FAILED'} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
  if (!passed) {
    const end = result.error?.message ?? result.signal ?? `exit code ${result.status}`;
    console.log(`${result.stdout ?? ''}${result.stderr ?? ''}${program} ended with ${end}`);
  }
  return passed;
}

requireTools();
buildPrograms();
const programs = fs
  .readdirSync(path.join(root, 'csrc', 'test'))
  .filter((file) => /^ops_.*\.cpp$/.test(file))
  .map((file) => path.basename(file, '.cpp'))
  .sort();
if (programs.length === 0) fail('found no csrc/test/ops_*.cpp to run.');
const failed = programs.filter((program) => !passes(program)).length;
console.log(`${programs.length - failed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
