// LangChain's wrapper of OpenAI's pictures: `node langchain_js.mjs URL MODEL`.
import assert from "node:assert/strict";
import { DallEAPIWrapper } from "@langchain/openai";

const [url, model] = process.argv.slice(2);
const tool = new DallEAPIWrapper({
  apiKey: "unused", baseUrl: `${url}/v1`, model, size: "64x64", n: 1,
});
const made = await tool.invoke("a cat");
assert.ok(made.startsWith(url), made);
console.log("DallEAPIWrapper.invoke");
