import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fetchAdapter, fetchModel } from '../lib/hub/hub.ts';
import { CausalLM, estimateMemory, getPeftModel, PeftModel } from '../lib/index.ts';
import { assertFails, deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const kCommit = '0123456789abcdef0123456789abcdef01234567';
const kId = 'owner/tiny-model';

/** Answers as the hub does: model info, file lists, contents with ranges. What it is asked is kept. */
class FakeHub {
  readonly requests: { method: string; url: string; range?: string; authorization?: string }[] = [];
  files: Record<string, Buffer> = {};
  /** Sends only half of what is asked for, so many times. */
  cuts = 0;
  status = 200;
  /** Large files lie in Git LFS and have a SHA-256. */
  isLfs = (name: string) => name.endsWith('.safetensors');
  corrupt = false;
  #server: Server | undefined;

  async start(): Promise<string> {
    this.#server = createServer((request, response) => this.#answer(request, response));
    await new Promise<void>((resolve) => this.#server?.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server?.closeAllConnections();
    await new Promise((resolve) => this.#server?.close(resolve));
  }

  downloads(): string[] {
    return this.requests.filter(({ url }) => url.includes('/resolve/')).map(({ url }) => url.split('/').at(-1) as string);
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = request.url ?? '';
    const { range, authorization } = request.headers;
    this.requests.push({ method: request.method ?? '', url, ...(range ? { range } : {}), ...(authorization ? { authorization } : {}) });
    const tree = `/api/models/${kId}/tree/${kCommit}`;
    const name = decodeURIComponent(url.split('/').at(-1) as string);
    const content = url.startsWith(`/${kId}/resolve/${kCommit}/`) ? this.files[name] : undefined;
    if (this.status !== 200) this.#json(response, { error: 'no' }, this.status);
    else if (url.startsWith(`/api/models/${kId}/revision/`))
      this.#json(response, { _id: '1', id: kId, sha: kCommit, lastModified: '2026-01-01' });
    else if (url.startsWith(tree))
      this.#json(
        response,
        Object.keys(this.files).map((file) => this.#entry(file)),
      );
    else if (content) this.#send(response, content, range);
    else this.#json(response, { error: 'not found' }, 404);
  }

  #entry(name: string): object {
    const content = this.files[name] as Buffer;
    const oid = createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
    const lfs = this.isLfs(name)
      ? { lfs: { oid: createHash('sha256').update(content).digest('hex'), size: content.length, pointerSize: 130 } }
      : {};
    return { type: 'file', path: name, size: content.length, oid, ...lfs };
  }

  #send(response: ServerResponse, content: Buffer, range: string | undefined): void {
    const begin = Number(/bytes=(\d+)-/.exec(range ?? '')?.[1] ?? 0);
    const rest = Buffer.from(content.subarray(begin));
    if (this.corrupt) rest[0] = (rest[0] as number) ^ 1;
    response.writeHead(begin > 0 ? 206 : 200, { 'content-length': rest.length });
    if (this.cuts-- > 0) response.write(rest.subarray(0, rest.length >> 1), () => setTimeout(() => response.destroy(), 20));
    else response.end(rest);
  }

  #json(response: ServerResponse, value: unknown, status = 200): void {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(JSON.stringify(value));
  }
}

describe('models of the hub', () => {
  const kVariables = [
    'HF_ENDPOINT',
    'HF_HUB_CACHE',
    'HF_HOME',
    'HF_TOKEN',
    'HF_TOKEN_PATH',
    'HF_HUB_OFFLINE',
    'HUGGINGFACE_HUB_CACHE',
    'HUGGING_FACE_HUB_TOKEN',
  ];
  const saved = Object.fromEntries(kVariables.map((name) => [name, process.env[name]]));
  let hub: FakeHub;
  let cache: string;
  let model: { files: Record<string, Buffer>; logits: Float32Array };

  before(async () => {
    const folder = join(temporaryFolder(), 'model');
    const original = await CausalLM.fromConfig(tinyConfig(), { seed: 2 });
    await original.savePretrained(folder);
    const files = Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));
    model = { files, logits: (await original.forward({ inputIds: [[1, 2, 3]] })).data };
  });

  beforeEach(async () => {
    for (const name of kVariables) delete process.env[name];
    hub = new FakeHub();
    hub.files = { ...model.files, 'README.md': Buffer.from('# A model'), 'pytorch_model.bin': Buffer.from('pickle') };
    process.env.HF_ENDPOINT = await hub.start();
    cache = join(temporaryFolder(), 'cache');
    process.env.HF_HUB_CACHE = cache;
    process.env.HF_HOME = temporaryFolder();
  });

  afterEach(async () => {
    await hub.stop();
    for (const [name, value] of Object.entries(saved)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    deleteTemporaryFolders();
  });

  it("are downloaded into Python's cache, only what is needed, and loaded", async () => {
    const loaded = await CausalLM.fromPretrained(kId);
    assert.deepEqual((await loaded.forward({ inputIds: [[1, 2, 3]] })).data, model.logits);
    assert.deepEqual(hub.downloads().sort(), ['config.json', 'model.safetensors']);
    const repository = join(cache, 'models--owner--tiny-model');
    assert.equal(readFileSync(join(repository, 'refs', 'main'), 'utf8'), kCommit);
    const pointer = join(repository, 'snapshots', kCommit, 'model.safetensors');
    assert.ok(lstatSync(pointer).isSymbolicLink());
    const sha256 = createHash('sha256')
      .update(model.files['model.safetensors'] as Buffer)
      .digest('hex');
    assert.equal(readlinkSync(pointer), join('..', '..', 'blobs', sha256));
  });

  it('are planned for by their config.json, which alone is fetched, and loaded afterwards', async () => {
    const { settings } = await estimateMemory({ model: kId, peftConfig: { r: 2, targetModules: 'all-linear' } });
    assert.deepEqual(hub.downloads(), ['config.json']);
    await using loaded = await CausalLM.fromPretrained(kId);
    assert.equal(settings.parameters, loaded.numParameters());
    assert.ok(hub.downloads().includes('model.safetensors'));
    const fetched = hub.downloads().length;
    await estimateMemory({ model: kId });
    assert.equal(hub.downloads().length, fetched);
  });

  it('are downloaded once', async () => {
    const folder = await fetchModel(kId);
    const count = hub.downloads().length;
    assert.equal(await fetchModel(kId), folder);
    assert.equal(hub.downloads().length, count);
  });

  it('go on where a cut connection stopped', async () => {
    hub.cuts = 3;
    const progress: number[] = [];
    await fetchModel(kId, { onProgress: ({ file, loaded, total }) => file === 'model.safetensors' && progress.push(loaded / total) });
    assert.ok(hub.requests.some(({ range }) => range !== undefined));
    assert.deepEqual([progress[0], progress.at(-1)], [0, 1]);
  });

  it('go on with what an earlier run left', async () => {
    const content = model.files['model.safetensors'] as Buffer;
    const sha256 = createHash('sha256').update(content).digest('hex');
    const blobs = join(cache, 'models--owner--tiny-model', 'blobs');
    mkdirSync(blobs, { recursive: true });
    writeFileSync(join(blobs, `${sha256}.incomplete`), content.subarray(0, 1000));
    const folder = await fetchModel(kId);
    assert.ok(hub.requests.some(({ range }) => range === 'bytes=1000-'));
    assert.deepEqual(readFileSync(join(folder, 'model.safetensors')), content);
    assert.ok(!existsSync(join(blobs, `${sha256}.incomplete`)));
  });

  it('are refused where the checksum is wrong', async () => {
    hub.corrupt = true;
    await assertFails(() => fetchModel(kId), 'IO_ERROR', /checksum/);
    assert.ok(!existsSync(join(cache, 'models--owner--tiny-model', 'refs', 'main')));
  });

  it('come from the cache alone when offline', async () => {
    await assertFails(() => fetchModel(kId, { localFilesOnly: true }), 'FILE_NOT_FOUND', /not in the cache/);
    const folder = await fetchModel(kId);
    const count = hub.requests.length;
    assert.equal(await fetchModel(kId, { localFilesOnly: true }), folder);
    process.env.HF_HUB_OFFLINE = '1';
    assert.equal(await fetchModel(kId), folder);
    assert.equal(await fetchModel(kId, { revision: kCommit }), folder);
    await assertFails(() => fetchModel('owner/other'), 'FILE_NOT_FOUND', /HF_HUB_OFFLINE/);
    assert.equal(hub.requests.length, count);
  });

  it('come from the cache where the server cannot be reached; without it the error says what to do', async () => {
    const folder = await fetchModel(kId);
    await hub.stop();
    assert.equal(await fetchModel(kId), folder);
    await assertFails(() => fetchModel('owner/other'), 'IO_ERROR', /could not be fetched.*check the network/);
  });

  it('are asked for with the token of the option, the environment or the token file', async () => {
    const used = () => new Set(hub.requests.splice(0).map(({ authorization }) => authorization));
    writeFileSync(join(process.env.HF_HOME as string, 'token'), 'hf_file\n');
    await fetchModel(kId);
    assert.deepEqual(used(), new Set(['Bearer hf_file']));
    process.env.HF_TOKEN = 'hf_environment';
    await fetchModel(kId);
    assert.deepEqual(used(), new Set(['Bearer hf_environment']));
    await fetchModel(kId, { token: 'hf_option' });
    assert.deepEqual(used(), new Set(['Bearer hf_option']));
  });

  it('give typed errors for what the hub refuses', async () => {
    hub.status = 404;
    await assertFails(() => CausalLM.fromPretrained(kId), 'FILE_NOT_FOUND', /no model owner\/tiny-model/);
    hub.status = 401;
    await assertFails(() => fetchModel(kId), 'IO_ERROR', /HF_TOKEN/);
    hub.status = 500;
    await assertFails(() => fetchModel(kId), 'IO_ERROR', /owner\/tiny-model/);
    await assertFails(() => fetchModel(kId, { revision: '../../x' }), 'INVALID_OPTION', /revision/);
    await assertFails(() => fetchModel(kId, { signal: AbortSignal.abort() }), 'ABORTED');
  });

  it('are refused where there are no safetensors, naming what there is', async () => {
    delete hub.files['model.safetensors'];
    await assertFails(() => fetchModel(kId), 'FILE_NOT_FOUND', /no safetensors.*pytorch_model\.bin/);
    delete hub.files['config.json'];
    await assertFails(() => fetchModel(kId), 'FILE_NOT_FOUND', /config\.json/);
  });

  it('may be adapters', async () => {
    const folder = join(temporaryFolder(), 'adapter');
    const peft = await getPeftModel(await CausalLM.fromConfig(tinyConfig(), { seed: 2 }), { initLoraWeights: false });
    await peft.savePretrained(folder);
    hub.files = Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));
    assert.ok((await fetchAdapter(kId)).endsWith(kCommit));
    const loaded = await PeftModel.fromPretrained(await CausalLM.fromConfig(tinyConfig(), { seed: 2 }), kId);
    const input = { inputIds: [[1, 2, 3]] };
    assert.deepEqual((await loaded.forward(input)).data, (await peft.forward(input)).data);
  });
});
