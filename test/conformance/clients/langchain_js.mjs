// LangChain's wrapper of OpenAI's pictures: `node langchain_js.mjs URL MODEL`.
import assert from "node:assert/strict";
import { DallEAPIWrapper } from "@langchain/openai";

const [url, model] = process.argv.slice(2);
const tool = (fields) =>
  new DallEAPIWrapper({ apiKey: "unused", baseUrl: `${url}/v1`, model, ...fields });
const isPng = (bytes) => Buffer.from(bytes).subarray(1, 4).toString() === "PNG";

const answer = await fetch(await tool().invoke("a cat")); // 1024x1024, vivid, as a URL
assert.ok(isPng(await answer.arrayBuffer()));
const b64 = await tool({ dallEResponseFormat: "b64_json" }).invoke("a cat");
assert.ok(isPng(Buffer.from(b64, "base64")));
assert.equal((await tool({ n: 2, size: "1792x1024" }).invoke("a cat")).length, 2);
console.log("DallEAPIWrapper.invoke");

await assert.rejects(tool({ model: "none" }).invoke("a cat"), /'none' does not exist/);
console.log("errors");
