// Builds build/<type>/lowrank.node with CMake. Three callers: `npm run build:native`, prebuildify (in node-gyp's place)
// and binding.gyp. Uses cmake-js where it is installed (a clone), else plain cmake with the two header packages (a user).
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const args = process.argv.slice(2);
const option = (name) => args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
const type = args.includes('--debug') ? 'Debug' : 'Release';
const jobs = String(require('node:os').availableParallelism());
const buildFolder = path.join(root, 'build', 'cmake');
const outFolder = path.resolve(option('out') ?? path.join(root, 'build', type));

function run(command, commandArgs) {
  const result = spawnSync(command, commandArgs, { cwd: root, stdio: 'inherit' });
  if (result.error) fail(`${command} could not be started: ${result.error.message}`);
  if (result.status) process.exit(result.status ?? 1);
}

function fail(message) {
  console.error(`lowrank: ${message}`);
  process.exit(1);
}

function requireTool(tool, advice) {
  if (spawnSync(tool, ['--version'], { stdio: 'ignore' }).error) {
    fail(`the native build needs ${tool}, which was not found. ${advice}`);
  }
}

requireTool(
  'cmake',
  'Install CMake 3.20 or newer (Debian/Ubuntu: apt install cmake; macOS: brew install cmake; Windows: winget install Kitware.CMake).',
);
if (
  process.platform !== 'win32' &&
  !process.env.CXX &&
  !['c++', 'g++', 'clang++'].some((tool) => !spawnSync(tool, ['--version'], { stdio: 'ignore' }).error)
) {
  fail(
    'the native build needs a C++20 compiler, and none of c++, g++, clang++ was found. Install g++ 11 or clang 14 or newer (Debian/Ubuntu: apt install g++; macOS: xcode-select --install).',
  );
}

let cmakeJs;
try {
  cmakeJs = require.resolve('cmake-js/bin/cmake-js');
} catch {
  // A user's machine has no devDependencies.
}
if (cmakeJs) {
  const arch = option('arch') ? ['--arch', option('arch')] : [];
  run(process.execPath, [
    cmakeJs,
    'build',
    '-O',
    buildFolder,
    '--parallel',
    String(require('node:os').availableParallelism()),
    ...(type === 'Debug' ? ['--debug'] : []),
    ...arch,
  ]);
} else {
  const includes = ['node-api-headers', 'node-addon-api'].map((name) => path.resolve(require(name).include_dir)).join(';');
  run('cmake', [
    '-S',
    root,
    '-B',
    buildFolder,
    `-DCMAKE_BUILD_TYPE=${type}`,
    `-DCMAKE_JS_INC=${includes}`,
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${path.join(buildFolder, type)}`,
  ]);
  run('cmake', ['--build', buildFolder, '--config', type, '--parallel', jobs]);
}
// Renamed into place: a process that has the old binary loaded keeps it whole.
fs.mkdirSync(outFolder, { recursive: true });
const staged = path.join(outFolder, `lowrank.node.${process.pid}`);
fs.copyFileSync(path.join(buildFolder, type, 'lowrank.node'), staged);
fs.renameSync(staged, path.join(outFolder, 'lowrank.node'));
