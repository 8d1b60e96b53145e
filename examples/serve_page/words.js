// What the page says, in both languages. {name} is filled in.
export const WORDS = {
  en: {
    title: "Kronos forecast", other: "中文", drop: "Drop a CSV here, or choose one",
    columns: "columns timestamps, open, high, low, close and, if known, volume, amount; one series",
    settings: "Settings", horizon: "Bars to forecast", calendar: "Exchange", always: "never closes", samples: "Paths", temperature: "Temperature", topP: "Top p", seed: "Seed",
    missing: "leave out bars that cannot be used (missing: drop)", go: "Forecast again", sample: "Try it with made-up bars",
    reading: "Reading {name} …", forecasting: "Forecasting {horizon} bars of {name} …",
    done: "{name}: {horizon} bars forecast from {lookback}, in {seconds} s.",
    heading: "{name}: the next {horizon} bars", last: "Last close", end: "Median at the end", band: "90 % of paths end within",
    up: "Paths that end higher", bars: "bars (hollow: up)", median: "median close", half: "50 % of paths", wide: "90 % of paths",
    download: "Download the forecast as CSV", numbers: "The numbers", time: "time", above: "above last close",
    caution: "Bands are quantiles of sampled paths; nothing here says how often they hold. Not investment advice.", docs: "HTTP interface",
    chart: "Fan chart: {past} bars, then the median and two bands of {horizon} forecast bars. Arrow keys read values; the table below has them all.",
    notText: "{name} is larger than {limit} MB: give the newest bars only", gone: "The service cannot be reached: is it still running?",
    refused: "The service refused this ({status}).", one: "One file at a time, please.", sampleName: "made-up bars",
  },
  zh: {
    title: "Kronos 预测", other: "English", drop: "将 CSV 拖到这里，或点击选择",
    columns: "列：timestamps、open、high、low、close，可选 volume、amount（也可用中文列名）；每个文件一个品种",
    settings: "设置", horizon: "预测根数", calendar: "交易所", always: "全天候（不休市）", samples: "路径数", temperature: "温度", topP: "Top p", seed: "随机种子",
    missing: "略去无法使用的 K 线（missing: drop）", go: "重新预测", sample: "用虚构的 K 线试一试",
    reading: "正在读取 {name} …", forecasting: "正在预测 {name} 的 {horizon} 根 K 线 …",
    done: "{name}：由 {lookback} 根预测 {horizon} 根，用时 {seconds} 秒。",
    heading: "{name}：之后 {horizon} 根", last: "最后收盘价", end: "期末中位数", band: "90 % 路径的期末区间",
    up: "期末上涨的路径", bars: "K 线（空心为涨）", median: "收盘价中位数", half: "50 % 的路径", wide: "90 % 的路径",
    download: "下载预测（CSV）", numbers: "全部数值", time: "时间", above: "高于最后收盘价",
    caution: "色带是采样路径的分位数，并不说明其可靠程度。不构成投资建议。", docs: "HTTP 接口",
    chart: "扇形图：{past} 根 K 线，之后是 {horizon} 根预测的中位数与两条色带。用方向键读数；下表列出全部数值。",
    notText: "{name} 超过 {limit} MB：请只提供最新的 K 线", gone: "无法连接服务：它还在运行吗？",
    refused: "服务拒绝了请求（{status}）。", one: "请一次只放一个文件。", sampleName: "虚构的 K 线",
  },
};

let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

export function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export function speak(next) {
  language = next ?? (language === "en" ? "zh" : "en");
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = say("title");
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  document.getElementById("language").textContent = say("other");
}

export const current = () => language;
