// What programs do with OpenAI's SDK for JavaScript: `node openai_node.mjs URL MODEL`.
// Prints a line for everything that went well; an exception ends it.
import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import OpenAI, { BadRequestError, NotFoundError, toFile } from "openai";
import { VERSION } from "openai/version";

const [url] = process.argv.slice(2);
const picture = "input.png";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const isPng = (b64) => Buffer.from(b64, "base64").subarray(1, 4).toString() === "PNG";
console.log("openai", VERSION);

const model = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(model)).id, model);
console.log("models");

const made = await client.images.generate({
  prompt: "a cat", model, n: 2, size: "64x64", response_format: "b64_json",
});
assert.ok(made.data.length === 2 && made.data.every((one) => isPng(one.b64_json)));
console.log("images.generate");

const one = () => createReadStream(picture); // chunked, without a length
const edited = await client.images.edit({ image: one(), prompt: "a dog", model });
assert.ok(isPng(edited.data[0].b64_json));
const several = [await toFile(one(), "a.png"), await toFile(one(), "b.png")];
assert.ok((await client.images.edit({ image: several, prompt: "a dog" })).data.length === 1);
console.log("images.edit");

let last;
for await (const event of await client.images.generate({ prompt: "a cat", stream: true })) {
  last = event;
}
assert.equal(last.type, "image_generation.completed");
assert.ok(isPng(last.b64_json));
console.log("images.generate({ stream: true })");

let video = await client.videos.create({ prompt: "a cat", size: "64x64", seconds: "1" });
while (video.status === "queued" || video.status === "in_progress") {
  video = await client.videos.retrieve(video.id);
}
assert.equal(video.status, "completed");
const content = Buffer.from(await (await client.videos.downloadContent(video.id)).arrayBuffer());
assert.equal(content.subarray(4, 8).toString(), "ftyp");
console.log("videos.create, retrieve, downloadContent");

await client.videos.create({ prompt: "a cat", input_reference: one() });
const remixed = await client.videos.remix(video.id, { prompt: "a dog" });
const ids = [];
for await (const found of client.videos.list({ limit: 1 })) ids.push(found.id);
assert.equal(ids.length, 3);
assert.ok((await client.videos.delete(remixed.id)).deleted);
console.log("videos.create with a picture, remix, list, delete");

await assert.rejects(client.images.generate({ prompt: "a cat", size: "1x1" }), BadRequestError);
await assert.rejects(client.videos.retrieve("video_none"), NotFoundError);
console.log("errors");
