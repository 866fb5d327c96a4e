-- `http-request lua.latchkey`: asks Latchkey's /v1/authorize about the request, through the section `listen latchkey`
-- of haproxy.cfg. Good: sets the identity headers and the variable txn.latchkey_proven. Anything else: answers the client.
-- (Not with core.httpclient: that one asks a slow server four times over.)

local LATCHKEY = "abns@latchkey"
-- Above the section's own timeouts, which are the ones that matter.
local TIMEOUT_S = 2
-- Where a key may stand: as LATCHKEY_GATEWAY_KEY_FROM has it. Each value goes on as it came, so that two are seen as two.
local CREDENTIALS = { "authorization", "x-api-key" }
-- And `x-latchkey-meta-NAME` for each name in LATCHKEY_GATEWAY_METADATA that the application wants.
local IDENTITY = { "x-latchkey-user", "x-latchkey-key-id", "x-latchkey-scopes", "x-latchkey-name" }
local TO_CLIENT = { "www-authenticate", "retry-after", "cache-control", "content-type" }
-- In every denial of Latchkey's. A 502, 503 or 504 without it is not its word but that of HAProxy, which could not reach it.
local DENIAL = "x-latchkey-denial"

local function request_for(txn)
    local lines = { "GET /v1/authorize HTTP/1.1", "host: latchkey", "connection: close" }
    local sent = txn.http:req_get_headers()
    for _, name in ipairs(CREDENTIALS) do
        local values = sent[name] or {}
        for index = 0, #values do
            if values[index] then lines[#lines + 1] = name .. ": " .. values[index] end
        end
    end
    local scopes = txn:get_var("txn.latchkey_scopes")
    if scopes then lines[#lines + 1] = "x-latchkey-required-scopes: " .. scopes end
    local token = txn:get_var("txn.latchkey_token")
    if token then lines[#lines + 1] = "x-latchkey-gateway-token: " .. token end
    lines[#lines + 1] = "x-original-uri: " .. (txn.f:pathq() or "*")
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

local function ask(txn)
    local socket = core.tcp()
    socket:settimeout(TIMEOUT_S)
    if not socket:connect(LATCHKEY) then return nil end
    socket:send(request_for(txn))
    local status = tonumber((socket:receive("*l") or ""):match("^HTTP/1%.1 (%d%d%d)"))
    local headers = {}
    while status do
        local line = socket:receive("*l")
        if not line then return nil end
        local name, value = line:match("^([^:]+):%s*(.-)\r?$")
        if not name then break end
        headers[name:lower()] = value
    end
    local length = tonumber(headers["content-length"] or 0)
    local body = length > 0 and socket:receive(length) or ""
    socket:close()
    return { status = status, headers = headers, body = body }
end

local function refuse(txn, status, headers, body)
    local reply = txn:reply({ status = status })
    for _, name in ipairs(TO_CLIENT) do
        if headers[name] then reply:add_header(name, headers[name]) end
    end
    reply:set_body(txn.f:method() == "HEAD" and "" or body)
    txn:done(reply)
end

core.register_action("latchkey", { "http-req" }, function(txn)
    local asked, answer = pcall(ask, txn)
    if not asked or not answer or not answer.body then return end
    if answer.status ~= 200 then
        if answer.headers[DENIAL] then refuse(txn, answer.status, answer.headers, answer.body) end
        return
    end
    for _, name in ipairs(IDENTITY) do
        -- A header that Latchkey did not send is no word of Latchkey.
        if not answer.headers[name] then return end
        txn.http:req_set_header(name, answer.headers[name])
        -- HAProxy says nothing when a header finds no room (tune.maxrewrite).
        if txn.f:req_fhdr(name) ~= answer.headers[name] then return end
    end
    txn:set_var("txn.latchkey_proven", true)
end, 0)
