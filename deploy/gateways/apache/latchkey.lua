-- `LuaHookAccessChecker latchkey.lua check`: asks Latchkey's /v1/authorize about the request. Good: sets the identity headers,
-- and forgets the credential. Anything else: answers the client.
local socket = require "socket"

-- What one that stops did not answer, the next is asked. (To ask twice does no harm.)
local LATCHKEYS = {
    "127.0.0.1:8080",
    -- "127.0.0.1:8081",
}
-- For all of them together.
local TIMEOUT_S = 0.5
-- With LATCHKEY_VERIFY_AUTH=token, what Latchkey knows this gateway by:
local TOKEN = nil
-- TOKEN = "SERVICE-TOKEN"
-- The scopes a key must have, separated by spaces, by the beginning of the path as httpd has tidied it up; none said: any
-- good key. The last one that fits counts.
local SCOPES = { { "^/+admin", "write" } }
-- Where a key may stand: as LATCHKEY_GATEWAY_KEY_FROM has it. (Of a header that was sent twice, httpd makes one with a comma.)
local CREDENTIALS = { "authorization", "x-api-key" }
-- And `x-latchkey-meta-NAME` for each name in LATCHKEY_GATEWAY_METADATA that the application wants.
local IDENTITY = { "x-latchkey-user", "x-latchkey-key-id", "x-latchkey-scopes", "x-latchkey-name" }
local TO_CLIENT = { "www-authenticate", "retry-after", "cache-control" }
-- In every denial of Latchkey's: what has it not, nor is a 200, is not its word.
local DENIAL = "x-latchkey-denial"
local UNAVAILABLE = '{"reason":"UNAVAILABLE","message":"The API key could not be checked. Try again."}'

local function question(r)
    local lines = { "GET /v1/authorize HTTP/1.1", "host: latchkey", "connection: close" }
    for _, name in ipairs(CREDENTIALS) do
        if r.headers_in[name] then lines[#lines + 1] = name .. ": " .. r.headers_in[name] end
    end
    local scopes
    for _, route in ipairs(SCOPES) do
        if r.uri:match(route[1]) then scopes = route[2] end
    end
    if scopes then lines[#lines + 1] = "x-latchkey-required-scopes: " .. scopes end
    if TOKEN then lines[#lines + 1] = "x-latchkey-gateway-token: " .. TOKEN end
    lines[#lines + 1] = "x-original-uri: " .. r.unparsed_uri
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- Nil: no whole answer until then.
local function ask(address, sent, until_s)
    local host, port = address:match("^(.*):(%d+)$")
    local connection = socket.tcp()
    local function receive(what)
        connection:settimeout(math.max(0.001, until_s - socket.gettime()))
        return connection:receive(what)
    end
    local function answer()
        connection:settimeout(math.max(0.001, until_s - socket.gettime()))
        if not connection:connect(host, tonumber(port)) or not connection:send(sent) then return nil end
        local status = tonumber((receive("*l") or ""):match("^HTTP/1%.1 (%d%d%d)"))
        if not status then return nil end
        local headers = {}
        while true do
            local line = receive("*l")
            if not line then return nil end
            local name, value = line:match("^([^:]+):%s*(.-)\r?$")
            if not name then break end
            headers[name:lower()] = value
        end
        local length = tonumber(headers["content-length"])
        local body = length == 0 and "" or receive(length or "*a")
        return body and { status = status, headers = headers, body = body }
    end
    local found = answer()
    connection:close()
    return found
end

local function ask_any(sent)
    local until_s = socket.gettime() + TIMEOUT_S
    for _, address in ipairs(LATCHKEYS) do
        local answer = ask(address, sent, until_s)
        if answer and (answer.status == 200 or answer.headers[DENIAL]) then return answer end
    end
end

local function refuse(r, status, headers, body)
    r.status = status
    for _, name in ipairs(TO_CLIENT) do
        if headers[name] then r.err_headers_out[name] = headers[name] end
    end
    r.content_type = "application/json"
    if r.method ~= "HEAD" then r:write(body) end
    return apache2.DONE
end

local function unavailable(r)
    return refuse(r, 503, { ["retry-after"] = "1", ["cache-control"] = "no-store" }, UNAVAILABLE)
end

function check(r)
    local asked, answer = pcall(function() return ask_any(question(r)) end)
    if not asked or not answer then return unavailable(r) end
    if answer.status ~= 200 then return refuse(r, answer.status, answer.headers, answer.body) end
    -- What only Latchkey may say, in every spelling that a program behind might read as the same.
    for name in pairs(r:headers_in_table()) do
        if name:lower():match("^x[^a-z0-9]latchkey") then r.headers_in[name] = nil end
    end
    for _, name in ipairs(IDENTITY) do
        -- A header that Latchkey did not send is no word of Latchkey.
        if not answer.headers[name] then return unavailable(r) end
        r.headers_in[name] = answer.headers[name]
    end
    -- What a client names in `Connection`, httpd takes off what it sends on: our headers too. So nothing but these may stand there.
    local kept = {}
    for token in (r.headers_in["connection"] or ""):lower():gmatch("[^%s,]+") do
        if token == "upgrade" or token == "close" or token == "keep-alive" then kept[#kept + 1] = token end
    end
    r.headers_in["connection"] = #kept > 0 and table.concat(kept, ", ") or nil
    -- A Bearer credential ends here; any other scheme goes on to the application.
    r.headers_in["x-api-key"] = nil
    local scheme = (r.headers_in["authorization"] or ""):lower():match("^%s*(%S+)")
    if scheme == "bearer" then r.headers_in["authorization"] = nil end
    return apache2.OK
end
